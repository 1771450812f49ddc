"""Read the log without a consumer group: ranges of offsets, single records, and the first and last offsets.

Topics are given by their short names, without ``EVERYRUN_TOPIC_PREFIX``. Every function raises
aiokafka.errors.KafkaError if Kafka does not answer or a topic does not exist. It never leaves out a partition, because
that partition would look empty.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code

from everyrun.log.connection import connection
from everyrun.settings import Settings

Partition = tuple[str, int]
"""A partition: (short topic name, number)."""

OffsetRange = tuple[int, int]
"""A range of offsets: (the first offset, the offset after the last one)."""

RecordKey = tuple[str, int, int]
"""Identifies a record: (short topic name, partition, offset)."""


class LogRecord(Protocol):
    """A record as aiokafka reads it."""

    @property
    def topic(self) -> str:
        """The topic, with the prefix."""

    @property
    def partition(self) -> int:
        """The number of the record's partition."""

    @property
    def offset(self) -> int:
        """The record's offset in the partition."""

    @property
    def key(self) -> bytes | None:
        """The record's key."""

    @property
    def value(self) -> bytes | None:
        """The record's value."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """The record's headers."""

    @property
    def timestamp(self) -> int:
        """The time of the append, in milliseconds since 1970."""


class Poll(NamedTuple):
    """One or more records of one partition, in order and without a gap."""

    topic: str
    partition: int
    records: Sequence[LogRecord]

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return self.records[0].offset

    @property
    def end(self) -> int:
        """Offset after the last record."""
        return self.records[-1].offset + 1


class RecordRange(NamedTuple):
    """Records of a partition in order, possibly none, and the offset where reading continues."""

    topic: str
    partition: int
    records: Sequence[LogRecord]
    next_offset: int


async def read_ranges(
    settings: Settings, ranges: Mapping[Partition, OffsetRange], *, max_records: int = 5000
) -> AsyncIterator[RecordRange]:
    """Yield the records within the ranges. Each partition is read in order. The partitions take turns.

    In the last item of each partition, ``next_offset`` is the end of the range. If the range ends after the log does,
    wait for more records. Raises KafkaError if Kafka has deleted records of a range.
    """
    remaining = {
        TopicPartition(settings.topic(topic), number): (topic, first, end)
        for (topic, number), (first, end) in ranges.items()
        if first < end
    }
    if not remaining:
        # Do not even start a consumer: aiokafka raises CancelledError if one is stopped right after its start.
        return
    async with _consumer(settings, max_partition_fetch_bytes=4 << 20) as consumer:
        consumer.assign(list(remaining))
        for part, (_, first, _) in remaining.items():
            consumer.seek(part, first)
        while remaining:
            fetched = await consumer.getmany(timeout_ms=200, max_records=max_records)
            # Compaction and transaction markers leave offsets without records. So only the consumer's position shows if
            # the end of a range is reached.
            for part in [p for p in remaining if p in fetched or await consumer.position(p) >= remaining[p][2]]:
                topic, _, end = remaining[part]
                records = fetched.get(part, [])
                if records and records[-1].offset >= end:
                    records = [record for record in records if record.offset < end]
                position = min(await consumer.position(part), end)
                if position == end:
                    consumer.pause(part)
                    del remaining[part]
                yield RecordRange(topic, part.partition, records, position)


async def read_polls(settings: Settings, partition: Partition, start: int, end: int) -> AsyncIterator[Poll]:
    """Yield the records of one partition from ``start`` up to, but not including, ``end``.

    The last offsets of the range may hold no record, so the last poll may end before ``end``. If the log ends before
    ``end``, waits for more records.
    """
    async for found in read_ranges(settings, {partition: (start, end)}, max_records=2000):
        if found.records:
            yield Poll(found.topic, found.partition, found.records)


class RecordReader:
    """Reads single records by offset, and skips the records between them. Use as an async context manager.

    All reads share one consumer, so a read waits until the previous read has ended.
    """

    #: Maximum number of bytes that Kafka returns for one partition. A single record that is larger is still returned.
    _FETCH_BYTES = 64 << 10
    #: If the next offset to read is at most this many offsets ahead, it is faster to read on than to fetch again.
    _READ_ON = 200

    def __init__(self, settings: Settings, topics: Iterable[str]) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._turn = asyncio.Lock()
        self._parts: dict[Partition, TopicPartition] = {}
        self._consumer = AIOKafkaConsumer(
            **connection(settings),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=self._FETCH_BYTES,
            fetch_max_wait_ms=5,
        )

    async def __aenter__(self) -> RecordReader:
        await self._consumer.start()
        try:
            known = await partitions(self._settings, self._topics)
            self._parts = {partition: part for part, partition in known.items()}
            # Assign all partitions once and pause them, because each new assignment would fetch metadata.
            self._consumer.assign(list(known))
            for part in known:
                self._consumer.seek(part, 0)
            self._consumer.pause(*known)
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def ends(self) -> dict[Partition, int]:
        """Return the current end of each partition."""
        ends = await self._consumer.end_offsets(list(self._parts.values()))
        return {partition: ends[part] for partition, part in self._parts.items()}

    async def read(self, keys: Iterable[RecordKey]) -> dict[RecordKey, LogRecord]:
        """Return the records with these keys. A record that was removed by compaction is left out."""
        wanted: dict[Partition, list[int]] = defaultdict(list)
        for topic, partition, offset in sorted(keys):
            wanted[topic, partition].append(offset)
        if not wanted:
            return {}
        async with self._turn:
            return await self._read(wanted)

    async def _read(self, wanted: dict[Partition, list[int]]) -> dict[RecordKey, LogRecord]:
        partition_of = {self._parts[partition]: partition for partition in wanted}
        remaining = {part: list(wanted[partition]) for part, partition in partition_of.items()}
        for part, offsets in remaining.items():
            self._consumer.seek(part, offsets[0])
        self._consumer.resume(*remaining)
        found: dict[RecordKey, LogRecord] = {}
        while remaining:
            for part, records in (await self._consumer.getmany(timeout_ms=1000)).items():
                if part not in remaining:
                    continue
                by_offset = {record.offset: record for record in records}
                reached, offsets = records[-1].offset + 1, remaining[part]
                for offset in offsets:
                    if offset in by_offset:
                        found[(*partition_of[part], offset)] = by_offset[offset]
                later = [offset for offset in offsets if offset >= reached]
                if not later:
                    self._consumer.pause(part)
                    del remaining[part]
                    continue
                remaining[part] = later
                if later[0] - reached > self._READ_ON:
                    self._consumer.seek(part, later[0])
        return found


async def partitions(settings: Settings, topics: Iterable[str]) -> dict[TopicPartition, Partition]:
    """Return every partition of the topics, by the TopicPartition that names it in aiokafka."""
    names = {settings.topic(topic): topic for topic in topics}
    admin = AIOKafkaAdminClient(**connection(settings))
    await admin.start()
    try:
        described = await admin.describe_topics(sorted(names))
    finally:
        await admin.close()
    for topic in described:
        if topic["error_code"]:
            raise for_code(topic["error_code"])(f"topic {topic['topic']}")
    return {
        TopicPartition(topic["topic"], part["partition"]): (names[topic["topic"]], part["partition"])
        for topic in described
        for part in topic["partitions"]
    }


class Bounds(NamedTuple):
    """The first offset of each partition, and its end: the offset that its next record will have."""

    first: dict[Partition, int]
    end: dict[Partition, int]


async def bounds(settings: Settings, topics: Iterable[str]) -> Bounds:
    """Return the current first offset and end of each partition."""
    known = await partitions(settings, topics)
    async with _consumer(settings) as consumer:
        first = await consumer.beginning_offsets(list(known))
        end = await consumer.end_offsets(list(known))
    return Bounds({known[p]: o for p, o in first.items()}, {known[p]: o for p, o in end.items()})


async def end_offsets(settings: Settings, topics: Iterable[str]) -> dict[Partition, int]:
    """Return the current end of each partition: the offset that its next record will have."""
    known = await partitions(settings, topics)
    async with _consumer(settings) as consumer:
        ends = await consumer.end_offsets(list(known))
    return {known[part]: end for part, end in ends.items()}


async def offsets_at(settings: Settings, topics: Iterable[str], moment: datetime) -> dict[Partition, int]:
    """Return, for each partition, the offset of the first record that was appended at or after the moment.

    If there is no such record, return the end of the partition.
    """
    known = await partitions(settings, topics)
    async with _consumer(settings) as consumer:
        # Request the ends first. Otherwise, a record that is appended between the two requests would be before the end,
        # although it is later than the moment.
        end = await consumer.end_offsets(list(known))
        found = await consumer.offsets_for_times(dict.fromkeys(known, milliseconds(moment)))
    return {partition: found[part].offset if found[part] else end[part] for part, partition in known.items()}


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(moment: datetime) -> int:
    """Return the moment as a Kafka timestamp, rounded up."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


@asynccontextmanager
async def _consumer(settings: Settings, **options: int) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(**connection(settings), enable_auto_commit=False, auto_offset_reset="none", **options)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()
