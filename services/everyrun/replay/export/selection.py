"""Select events of the log by batch, submission, type, time or offsets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec

from everyrun.extend import reserved
from everyrun.log.cloudevents import header
from everyrun.log.reading import LogRecord, OffsetRange, Partition, RecordRange, milliseconds
from everyrun.log.topics import declared
from everyrun.projection.offsets import INPUTS
from everyrun.replay.errors import SelectionError

_OFFSETS = re.compile(r"([a-z]+):(\d+)=(\d+)(?:\.\.(\d+))?")


class Source(Protocol):
    """A source of records: the log, or an archive."""

    def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """Yield the records within the ranges, in order within each partition."""


class EventSelection(msgspec.Struct, frozen=True, kw_only=True):
    """The events to replay: those that match all given fields. A field that is empty or None is ignored.

    ``since`` (inclusive) and ``until`` (exclusive) are compared with the time at which the broker appended the event.
    ``offsets`` contains, by partition, the first offset, and the offset after the last one (None means up to the end).
    """

    topics: tuple[str, ...] = INPUTS
    batch: str | None = None
    submission: str | None = None
    types: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    offsets: dict[Partition, tuple[int, int | None]] = {}


class SelectionScope:
    """The attempts, batches and submissions that a selection covers, as learned from the events of ``batches``."""

    def __init__(self, selection: EventSelection) -> None:
        self.submissions = {selection.submission} - {None}
        self.batches = {selection.batch} - {None}
        self.attempts: set[tuple[str, int]] = set()
        self._all = not self.submissions and not self.batches

    def learn(self, records: Iterable[Any]) -> None:
        """Learn from these events of ``batches`` which attempts and batches belong to the selection."""
        for record in records:
            head = _head(record)
            if head.chunk is None or head.attempt is None:
                continue
            if head.batch_id in self.batches or head.submission_id in self.submissions:
                self.attempts.add((head.chunk, head.attempt))
                if self.submissions and head.batch_id is not None:
                    self.batches.add(head.batch_id)

    def touches(self, topic: str, record: LogRecord) -> bool:
        """Return true if an event belongs to one of these attempts, batches or submissions."""
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

    def _observes(self, record: LogRecord) -> bool:
        """Return true if the run belongs to one of the batches or, if it names no batch, to one of the attempts."""
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


def _head(record: LogRecord) -> _Head:
    try:
        return _decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Head()


def select(selection: EventSelection, scope: SelectionScope, record_range: RecordRange) -> list[Any]:
    """Return the records of a range that belong to the selection."""
    since = None if selection.since is None else milliseconds(selection.since)
    until = None if selection.until is None else milliseconds(selection.until)
    return [
        record
        for record in record_range.records
        if (not selection.types or header(record.headers, "ce_type") in selection.types)
        and (since is None or record.timestamp >= since)
        and (until is None or record.timestamp < until)
        and scope.touches(record_range.topic, record)
    ]


async def scope_of(
    selection: EventSelection, source: Source, bounds: Mapping[Partition, OffsetRange]
) -> SelectionScope:
    """Read all events of ``batches`` to find what a selection covers; ``bounds`` are the ranges that the source has."""
    scope = SelectionScope(selection)
    if selection.batch is not None or selection.submission is not None:
        of_batches = {partition: range_ for partition, range_ in bounds.items() if partition[0] == "batches"}
        async for record_range in source.read(of_batches):
            scope.learn(record_range.records)
    return scope


def selected_ranges(selection: EventSelection, bounds: Mapping[Partition, OffsetRange]) -> dict[Partition, OffsetRange]:
    """Return the ranges to read from the source. Raises SelectionError if a selected partition does not exist."""
    ranges = {partition: range_ for partition, range_ in bounds.items() if partition[0] in selection.topics}
    if not selection.offsets:
        return ranges
    missing = sorted(set(selection.offsets) - set(bounds))
    if missing:
        raise SelectionError(f"there is no partition {missing[0][0]}:{missing[0][1]}")
    found = {}
    for partition, (first, end) in selection.offsets.items():
        source_first, source_end = bounds[partition]
        found[partition] = (max(first, source_first), source_end if end is None else min(end, source_end))
    return found


def parse_offsets(text: str) -> dict[Partition, tuple[int, int | None]]:
    """Parse ranges of offsets. Raises SelectionError.

    ``runs:0=400`` means partition 0 of ``runs`` from offset 400 on; ``runs:1=20..90`` ends before offset 90.
    """
    found: dict[Partition, tuple[int, int | None]] = {}
    for part in text.split(","):
        match = _OFFSETS.fullmatch(part.strip())
        if match is None:
            raise SelectionError(f"{part.strip()!r} is not TOPIC:PARTITION=FIRST or TOPIC:PARTITION=FIRST..END")
        topic, partition, first, end = match.groups()
        found[topic, int(partition)] = (int(first), None if end is None else int(end))
    check_topics(topic for topic, _ in found)
    return found


def check_topics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple. Raises SelectionError if a name is not that of a topic of Everyrun."""
    given = tuple(names)
    known = {topic.name for topic in declared()}
    unknown = sorted(set(given) - known)
    if unknown:
        raise SelectionError(f"there is no topic {', '.join(unknown)}; the topics are {', '.join(sorted(known))}")
    return given
