"""Deliver selected events to a target: in order within each partition, at a limited rate, with a checkpoint."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from everyrun.atomic_file import write_bytes
from everyrun.log.cloudevents import header
from everyrun.log.reading import LogRecord, OffsetRange, Partition, RecordRange, offsets_at, read_ranges
from everyrun.replay.export.selection import EventSelection, SelectionScope, Source, select
from everyrun.replay.export.targets import Target
from everyrun.replay.progress import OnProgress, no_progress
from everyrun.settings import Settings


class LogSource:
    """The live log as a source of records."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """Yield the records within the ranges, in order within each partition."""
        return read_ranges(self._settings, ranges)


async def skip_other_times(
    settings: Settings, selection: EventSelection, ranges: Mapping[Partition, OffsetRange]
) -> dict[Partition, OffsetRange]:
    """Shorten the ranges: leave out the offsets outside the selected time, according to Kafka's time index.

    For ranges of the live log only. Raises aiokafka.errors.KafkaError.
    """
    found = dict(ranges)
    if selection.since is not None:
        starts = await offsets_at(settings, selection.topics, selection.since)
        found = {partition: (max(first, starts[partition]), end) for partition, (first, end) in found.items()}
    if selection.until is not None:
        ends = await offsets_at(settings, selection.topics, selection.until)
        found = {partition: (first, max(first, min(end, ends[partition]))) for partition, (first, end) in found.items()}
    return {partition: (min(first, end), end) for partition, (first, end) in found.items()}


class ReplayCheckpoint(msgspec.Struct):
    """The progress of a replay.

    ``next`` contains the next offset by topic and partition, ``published`` is the number of events published so far,
    and ``size`` is the size of the target file in bytes.
    """

    next: dict[str, dict[int, int]] = {}
    published: int = 0
    size: int = 0


class CheckpointFile:
    """Keeps the checkpoint of a replay in a file until the replay is done; without a path, only in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.checkpoint = ReplayCheckpoint()
        if path is not None and path.exists():
            self.checkpoint = msgspec.json.decode(path.read_bytes(), type=ReplayCheckpoint)

    def save(self, topic: str, partition: int, next_offset: int, published: int, target: Target) -> None:
        """Update the checkpoint and write it to the file."""
        self.checkpoint.next.setdefault(topic, {})[partition] = next_offset
        self.checkpoint.published = published
        self.checkpoint.size = target.size()
        self.write()

    def write(self) -> None:
        """Write the checkpoint to the file atomically. The file also shows that a replay has begun."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, msgspec.json.encode(self.checkpoint))

    def remaining(self, ranges: Mapping[Partition, OffsetRange]) -> dict[Partition, OffsetRange]:
        """Return the ranges without the offsets that the checkpoint counts as done."""
        done = self.checkpoint.next
        return {
            (topic, partition): (max(first, done.get(topic, {}).get(partition, first)), end)
            for (topic, partition), (first, end) in ranges.items()
        }

    def delete(self) -> None:
        """Delete the file: the replay is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


async def publish(
    source: Source,
    ranges: Mapping[Partition, OffsetRange],
    selection: EventSelection,
    scope: SelectionScope,
    target: Target | None,
    checkpoint_file: CheckpointFile,
    *,
    rate: float | None = None,
    on_progress: OnProgress = no_progress,
) -> Counter[str]:
    """Deliver the selected events to the target, and count them. Without a target, only count them.

    Each key of the result is a topic and an event type, for example ``runs run-observed``.

    ``rate`` is the maximum number of events per second. Topics are replayed one after another, in the order of the
    selection. Raises TargetError, and the errors of the source. After an error the checkpoint is kept, so that the
    replay can resume.
    """
    counts: Counter[str] = Counter()
    remaining = checkpoint_file.remaining(ranges)
    total = sum(end - first for first, end in ranges.values())
    done = total - sum(max(end - first, 0) for first, end in remaining.values())
    began, delivered = time.monotonic(), 0
    for topic in selection.topics:
        next_offsets = {partition: first for (name, partition), (first, _) in remaining.items() if name == topic}
        async for record_range in source.read({p: range_ for p, range_ in remaining.items() if p[0] == topic}):
            partition = record_range.partition
            found = select(selection, scope, record_range)
            counts.update(f"{topic} {_type(record)}" for record in found)
            if target is not None:
                for part in in_parts(found, target.at_once, rate):
                    if rate is not None:
                        await asyncio.sleep(max(began + delivered / rate - time.monotonic(), 0))
                    await target.deliver(topic, part)
                    delivered += len(part)
                    published = checkpoint_file.checkpoint.published + len(part)
                    checkpoint_file.save(topic, partition, part[-1].offset + 1, published, target)
                published = checkpoint_file.checkpoint.published
                checkpoint_file.save(topic, partition, record_range.next_offset, published, target)
            done += max(record_range.next_offset - next_offsets[partition], 0)
            next_offsets[partition] = record_range.next_offset
            on_progress(done, total)
    if target is not None:
        target.finish()
    checkpoint_file.delete()
    return counts


def in_parts(records: Sequence[Any], at_once: int, rate: float | None) -> Iterator[Sequence[Any]]:
    """Cut records into parts of at most ``at_once`` records.

    If a rate is given, a part contains at most the records of a quarter of a second at this rate, but at least one.
    """
    size = at_once if rate is None else max(min(at_once, int(rate / 4)), 1)
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _type(record: LogRecord) -> str:
    return header(record.headers, "ce_type") or "-"
