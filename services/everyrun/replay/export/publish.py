"""Publishing chosen events again: in order within each partition, at a rate, and on from where a killed run was."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from everyrun.atomic_file import write_bytes
from everyrun.log.cloudevents import header
from everyrun.log.reading import OffsetRange, Partition, RecordRange, offsets_at, read_ranges
from everyrun.replay.export.selection import Selection, Source, Subject, chosen
from everyrun.replay.export.targets import Target
from everyrun.settings import Settings

Progress = Callable[[int, int], None]
"""Told how many records are read and how many there are to read."""


class LogSource:
    """The live log as a source of records."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """The records within the ranges; each partition in order."""
        return read_ranges(self._settings, ranges)


async def timed(
    settings: Settings, selection: Selection, ranges: Mapping[Partition, OffsetRange], *, live: bool
) -> dict[Partition, OffsetRange]:
    """The ranges without what lies before ``since`` or after ``until`` by Kafka's own index of times; only a live log
    has one, of an archive each record is looked at. Raises aiokafka.errors.KafkaError."""
    found = dict(ranges)
    if live and selection.since is not None:
        starts = await offsets_at(settings, selection.topics, selection.since)
        found = {place: (max(first, starts[place]), end) for place, (first, end) in found.items()}
    if live and selection.until is not None:
        ends = await offsets_at(settings, selection.topics, selection.until)
        found = {place: (first, max(first, min(end, ends[place]))) for place, (first, end) in found.items()}
    return {place: (min(first, end), end) for place, (first, end) in found.items()}


class Place(msgspec.Struct):
    """How far a replay is: the next offset by topic and partition, how many events were published, and the size of
    the file they are in."""

    next: dict[str, dict[int, int]] = {}
    published: int = 0
    size: int = 0


class Keeper:
    """Keeps the place of a replay in a file, until it is done."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.place = Place()
        if path is not None and path.exists():
            self.place = msgspec.json.decode(path.read_bytes(), type=Place)

    def save(self, topic: str, partition: int, next_offset: int, published: int, target: Target) -> None:
        """Keep the place, whole or not at all."""
        self.place.next.setdefault(topic, {})[partition] = next_offset
        self.place.published = published
        self.place.size = target.size()
        self.begin()

    def begin(self) -> None:
        """Keep the place as it is: also of a replay that has published nothing yet, so that it is known as begun."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, msgspec.json.encode(self.place))

    def left(self, ranges: Mapping[Partition, OffsetRange]) -> dict[Partition, OffsetRange]:
        """What of the ranges is not done yet."""
        done = self.place.next
        return {
            (topic, partition): (max(first, done.get(topic, {}).get(partition, first)), end)
            for (topic, partition), (first, end) in ranges.items()
        }

    def forget(self) -> None:
        """The replay is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


async def replay(
    source: Source,
    ranges: Mapping[Partition, OffsetRange],
    selection: Selection,
    subject: Subject,
    target: Target | None,
    keeper: Keeper,
    *,
    rate: float | None = None,
    progress: Progress = lambda done, total: None,
) -> Counter[str]:
    """Hand the chosen events to the target; how many of each topic and type. Without a target they are only counted.

    ``rate`` is events a second at most. Topics go one after another, as the selection names them. Raises TargetError,
    and what the source raises; the place is kept then.
    """
    counts: Counter[str] = Counter()
    left = keeper.left(ranges)
    total = sum(end - first for first, end in ranges.values())
    done = total - sum(max(end - first, 0) for first, end in left.values())
    began, handed = time.monotonic(), 0
    for name in selection.topics:
        at = {partition: first for (topic, partition), (first, _) in left.items() if topic == name}
        async for stretch in source.read({place: range_ for place, range_ in left.items() if place[0] == name}):
            found = chosen(selection, subject, stretch)
            counts.update(f"{name} {_type(record)}" for record in found)
            if target is not None:
                for part in in_parts(found, target.at_once, rate):
                    if rate is not None:
                        await asyncio.sleep(max(began + handed / rate - time.monotonic(), 0))
                    await target.deliver(name, part)
                    handed += len(part)
                    keeper.save(
                        name, stretch.partition, part[-1].offset + 1, keeper.place.published + len(part), target
                    )
                keeper.save(name, stretch.partition, stretch.next_offset, keeper.place.published, target)
            done += max(stretch.next_offset - at[stretch.partition], 0)
            at[stretch.partition] = stretch.next_offset
            progress(done, total)
    if target is not None:
        target.finish()
    keeper.forget()
    return counts


def in_parts(records: Sequence[Any], at_once: int, rate: float | None) -> Iterator[Sequence[Any]]:
    """The records in parts of at most ``at_once``; with a rate, of no more than a quarter of a second's."""
    size = at_once if rate is None else max(min(at_once, int(rate / 4)), 1)
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _type(record: Any) -> str:
    return header(record.headers, "ce_type") or "-"
