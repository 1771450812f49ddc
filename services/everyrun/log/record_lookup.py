"""Records by their offsets, a few of many: by seeking, without reading what lies between."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.log.connection import connection
from everyrun.log.reader import partitions
from everyrun.log.reading import Position
from everyrun.settings import Settings

#: What one answer of Kafka brings at most of a partition; a larger record comes all the same.
_FETCH = 64 << 10


class RecordsAt:
    """Reads records by offset. Use as an async context manager; one call at a time has the consumer."""

    def __init__(self, settings: Settings, topics: Iterable[str]) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._turn = asyncio.Lock()
        self._parts: dict[Position, TopicPartition] = {}
        self._consumer = AIOKafkaConsumer(
            **connection(settings),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=_FETCH,
            fetch_max_wait_ms=5,
        )

    async def __aenter__(self) -> RecordsAt:
        await self._consumer.start()
        try:
            known = await partitions(self._settings, self._topics)
            self._parts = {place: part for part, place in known.items()}
            # Assigned once, and paused but while they are read: a new assignment would ask for metadata each time.
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

    async def ends(self) -> dict[Position, int]:
        """Where each partition ends now. Raises aiokafka.errors.KafkaError where Kafka does not answer."""
        ends = await self._consumer.end_offsets(list(self._parts.values()))
        return {place: ends[part] for place, part in self._parts.items()}

    async def read(self, places: Iterable[tuple[str, int, int]]) -> dict[tuple[str, int, int], Any]:
        """The records at (short topic name, partition, offset), by place; one that is compacted away is not in it.

        Raises aiokafka.errors.KafkaError where Kafka does not answer.
        """
        wanted: dict[Position, list[int]] = defaultdict(list)
        for topic, partition, offset in sorted(places):
            wanted[topic, partition].append(offset)
        if not wanted:
            return {}
        async with self._turn:
            return await self._read(wanted)

    async def _read(self, wanted: dict[Position, list[int]]) -> dict[tuple[str, int, int], Any]:
        parts = {self._parts[place]: place for place in wanted}
        left = {part: list(wanted[place]) for part, place in parts.items()}
        for part, offsets in left.items():
            self._consumer.seek(part, offsets[0])
        self._consumer.resume(*left)
        found: dict[tuple[str, int, int], Any] = {}
        while left:
            for part, records in (await self._consumer.getmany(timeout_ms=1000)).items():
                if part not in left:
                    continue
                by_offset = {record.offset: record for record in records}
                reached, offsets = records[-1].offset + 1, left[part]
                for offset in offsets:
                    if offset in by_offset:
                        found[(*parts[part], offset)] = by_offset[offset]
                later = [offset for offset in offsets if offset >= reached]
                if not later:
                    self._consumer.pause(part)
                    del left[part]
                    continue
                left[part] = later
                # Within a few records it is quicker to read on than to ask anew.
                if later[0] - reached > 200:
                    self._consumer.seek(part, later[0])
        return found
