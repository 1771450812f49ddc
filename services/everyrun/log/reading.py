"""Reading known stretches of many partitions at once, without a consumer group; gaps in the offsets do no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.log.connection import connection
from everyrun.log.reader import partitions
from everyrun.settings import Settings

Position = tuple[str, int]
"""A partition: (short topic name, number)."""

Range = tuple[int, int]
"""Offsets, from the first up to, without, the second."""


class Stretch(NamedTuple):
    """Some records of a partition in order, and the offset that reading goes on from. There may be no record."""

    topic: str
    partition: int
    records: Sequence[Any]
    next_offset: int


async def read_ranges(
    settings: Settings, ranges: Mapping[Position, Range], *, max_records: int = 5000
) -> AsyncIterator[Stretch]:
    """The records within the ranges; each partition in order, the partitions as they come.

    The last stretch of each partition has the range's end as ``next_offset``. Waits where the log ends before it.
    Raises aiokafka.errors.KafkaError where Kafka does not answer, or no longer has an offset asked for.
    """
    wanted = {
        TopicPartition(settings.topic(topic), number): (topic, first, end)
        for (topic, number), (first, end) in ranges.items()
        if first < end
    }
    if not wanted:
        return
    consumer = AIOKafkaConsumer(
        **connection(settings),
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        consumer.assign(list(wanted))
        for part, (_, first, _) in wanted.items():
            consumer.seek(part, first)
        while wanted:
            found = await consumer.getmany(timeout_ms=200, max_records=max_records)
            # A compacted topic has offsets without records: then only the position says that the end is reached.
            for part in [part for part in wanted if part in found or await _at_end(consumer, part, wanted[part][2])]:
                topic, _, end = wanted[part]
                records = found.get(part, [])
                if records and records[-1].offset >= end:
                    records = [record for record in records if record.offset < end]
                position = min(await consumer.position(part), end)
                if position == end:
                    consumer.pause(part)
                    del wanted[part]
                yield Stretch(topic, part.partition, records, position)
    finally:
        await consumer.stop()


async def _at_end(consumer: AIOKafkaConsumer, part: TopicPartition, end: int) -> bool:
    return int(await consumer.position(part)) >= end


class Bounds(NamedTuple):
    """Where each partition begins and ends now."""

    first: dict[Position, int]
    end: dict[Position, int]


async def bounds(settings: Settings, topics: Iterable[str]) -> Bounds:
    """The first offset and the end of each partition of the topics (short names).

    Raises aiokafka.errors.KafkaError where Kafka does not answer, or a topic is not there.
    """
    wanted = await partitions(settings, topics)
    async with _Asking(settings) as consumer:
        first = await consumer.beginning_offsets(list(wanted))
        end = await consumer.end_offsets(list(wanted))
    return Bounds({wanted[p]: o for p, o in first.items()}, {wanted[p]: o for p, o in end.items()})


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(moment: datetime) -> int:
    """The first of Kafka's timestamps that is at or after the moment."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


async def offsets_at(settings: Settings, topics: Iterable[str], moment: datetime) -> dict[Position, int]:
    """For each partition the first offset that was appended at or after the moment; the end where there is none.

    Raises aiokafka.errors.KafkaError where Kafka does not answer, or a topic is not there.
    """
    wanted = await partitions(settings, topics)
    async with _Asking(settings) as consumer:
        # The ends first: what is appended between the two questions lies after the moment.
        end = await consumer.end_offsets(list(wanted))
        found = await consumer.offsets_for_times(dict.fromkeys(wanted, milliseconds(moment)))
    return {place: found[part].offset if found[part] else end[part] for part, place in wanted.items()}


class _Asking:
    """A consumer that only asks for offsets."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = AIOKafkaConsumer(**connection(settings))

    async def __aenter__(self) -> AIOKafkaConsumer:
        await self._consumer.start()
        return self._consumer

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
