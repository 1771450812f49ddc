"""Which events of the log are meant: by batch, submission, type, time or offsets. Pure but for what is read of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec

from everyrun.errors import Invalid
from everyrun.extend import reserved
from everyrun.log.cloudevents import header
from everyrun.log.reading import OffsetRange, Partition, RecordRange, milliseconds
from everyrun.log.topics import declared

_OFFSETS = re.compile(r"([a-z]+):(\d+)=(\d+)(?:\.\.(\d+))?")

#: What is replayed where no topic is named: what was heard and decided, not what was made of it.
INPUTS = ("batches", "runs", "deliveries", "quarantine")


class SelectionError(Invalid, ValueError):
    """The text selects nothing that there is; says what would."""


class Source(Protocol):
    """Where records are read: the log, or an archive."""

    def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """The records within the ranges; each partition in order."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be chosen; what is not given does not narrow. ``since`` and ``until`` are times of append."""

    topics: tuple[str, ...] = INPUTS
    batch: str | None = None
    submission: str | None = None
    types: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    offsets: dict[Partition, tuple[int, int | None]] = {}


class Subject:
    """The attempts, batches and submissions that a selection is about, learned from the events of ``batches``."""

    def __init__(self, selection: Selection) -> None:
        self.submissions = {selection.submission} - {None}
        self.batches = {selection.batch} - {None}
        self.attempts: set[tuple[str, int]] = set()
        self._all = not self.submissions and not self.batches

    def learn(self, records: Iterable[Any]) -> None:
        """Take what events say of which attempt a batch is, and whose."""
        for record in records:
            head = _head(record)
            if head.chunk is None or head.attempt is None:
                continue
            if head.batch_id in self.batches or head.submission_id in self.submissions:
                self.attempts.add((head.chunk, head.attempt))
                if self.submissions and head.batch_id is not None:
                    self.batches.add(head.batch_id)

    def touches(self, topic: str, record: Any) -> bool:
        """Whether an event is about it."""
        if self._all:
            return True
        if topic == "runs":
            return self._observes(record)
        head = _head(record)
        if head.submission_id in self.submissions or head.batch_id in self.batches:
            return True
        if topic == "deliveries":
            key = reserved.read(head.metadata)
            return key is not None and (key.chunk, key.attempt) in self.attempts
        return (head.chunk, head.attempt) in self.attempts

    def _observes(self, record: Any) -> bool:
        """Return whether the run belongs to one of the batches, or, if it names none, to one of the attempts."""
        try:
            run = _observed(record.value or b"").run
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if run.batchId is not None:
            return run.batchId in self.batches
        key = reserved.read(run.metadata)
        return key is not None and (key.chunk, key.attempt) in self.attempts


class _Run(msgspec.Struct):
    batchId: str | None = None  # noqa: N815
    metadata: Any = None


class _Observed(msgspec.Struct):
    run: _Run


_observed = msgspec.json.Decoder(_Observed).decode


class _Head(msgspec.Struct):
    submission_id: str | None = None
    batch_id: str | None = None
    chunk: str | None = None
    attempt: int | None = None
    metadata: Any = None


_decode = msgspec.json.Decoder(_Head).decode


def _head(record: Any) -> _Head:
    try:
        return _decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Head()


def chosen(selection: Selection, subject: Subject, stretch: RecordRange) -> list[Any]:
    """The records of a stretch that the selection means."""
    since = None if selection.since is None else milliseconds(selection.since)
    until = None if selection.until is None else milliseconds(selection.until)
    return [
        record
        for record in stretch.records
        if (not selection.types or header(record.headers, "ce_type") in selection.types)
        and (since is None or record.timestamp >= since)
        and (until is None or record.timestamp < until)
        and subject.touches(stretch.topic, record)
    ]


async def subject_of(selection: Selection, source: Source, bounds: Mapping[Partition, OffsetRange]) -> Subject:
    """Learn what the selection is about from every event of ``batches``; ``bounds`` is what the source has."""
    subject = Subject(selection)
    if selection.batch is not None or selection.submission is not None:
        async for stretch in source.read({place: range_ for place, range_ in bounds.items() if place[0] == "batches"}):
            subject.learn(stretch.records)
    return subject


def narrowed(selection: Selection, bounds: Mapping[Partition, OffsetRange]) -> dict[Partition, OffsetRange]:
    """What is to be read of what the source has. Raises SelectionError for a partition that is not there."""
    ranges = {place: range_ for place, range_ in bounds.items() if place[0] in selection.topics}
    if not selection.offsets:
        return ranges
    missing = sorted(set(selection.offsets) - set(bounds))
    if missing:
        raise SelectionError(f"there is no partition {missing[0][0]}:{missing[0][1]}")
    found = {}
    for place, (first, end) in selection.offsets.items():
        has = bounds[place]
        found[place] = (max(first, has[0]), has[1] if end is None else min(end, has[1]))
    return found


def parse_offsets(text: str) -> dict[Partition, tuple[int, int | None]]:
    """``runs:0=400,runs:1=20..90``: from an offset on, or up to, without, another. Raises SelectionError."""
    found: dict[Partition, tuple[int, int | None]] = {}
    for part in text.split(","):
        match = _OFFSETS.fullmatch(part.strip())
        if match is None:
            raise SelectionError(f"{part.strip()!r} is not TOPIC:PARTITION=FIRST or TOPIC:PARTITION=FIRST..END")
        topic, partition, first, end = match.groups()
        found[topic, int(partition)] = (int(first), None if end is None else int(end))
    known_topics(topic for topic, _ in found)
    return found


def known_topics(names: Iterable[str]) -> tuple[str, ...]:
    """The same, where each is a topic of ours. Raises SelectionError."""
    given = tuple(names)
    known = {topic.name for topic in declared()}
    unknown = sorted(set(given) - known)
    if unknown:
        raise SelectionError(f"there is no topic {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return given
