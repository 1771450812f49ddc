"""Offsets without records (transaction markers, compaction) are skipped, not waited for."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from everyrun.log.connection import connection
from everyrun.log.reading import Poll, end_offsets, read_polls
from everyrun.projection import tables
from everyrun.projection.feed import Feed
from everyrun.settings import Settings
from tests.integration.tables import applied
from tests.memory_log import MemoryLog
from tests.records import LOG, run_event

pytestmark = pytest.mark.stack


async def in_transactions(settings: Settings, *counts: int) -> None:
    """Write runs to partition 0, in transactions of these sizes. Each takes one more offset than it has records."""
    producer = AIOKafkaProducer(transactional_id=settings.topic_prefix, **connection(settings))
    await producer.start()
    number = 0
    for count in counts:
        async with producer.transaction():
            for _ in range(count):
                made = run_event(f"run_{number}", "batch", "PROCESSED", 1, key=None)
                number += 1
                await producer.send_and_wait(
                    settings.topic("runs"), made.value, made.key, partition=0, headers=made.headers
                )
    await producer.stop()


async def test_offsets_without_records_are_skipped(settings: Settings, database: str) -> None:
    await in_transactions(settings, 2, 1)
    place = ("runs", 0)
    end = (await end_offsets(settings, ["runs"]))[place]
    assert end == 5

    async def read(first: int, last: int) -> list[Poll]:
        async with asyncio.timeout(30):
            return [poll async for poll in read_polls(settings, ("runs", 0), first, last)]

    everything = [record for poll in await read(0, end) for record in poll.records]
    assert [record.offset for record in everything] == [0, 1, 3]
    assert [record.offset for poll in await read(0, 3) for record in poll.records] == [0, 1]
    assert await read(4, end) == []
    async with (
        asyncpg.create_pool(
            database,
            min_size=1,
            max_size=2,
            init=tables.setup_connection,
            server_settings={"search_path": tables.SCHEMA},
        ) as pool,
        asyncio.timeout(30),
    ):
        feed = Feed(settings, pool, LOG, MemoryLog(AssertionError("the feed must write nothing")))
        # Neither a record behind an empty offset nor an acknowledged empty offset remains a gap.
        await feed.apply([Poll("runs", 0, everything[:2])])
        await feed.apply([Poll("runs", 0, everything[2:])], lambda: {place: 3})
        await feed.apply([Poll("runs", 0, everything[2:])], lambda: {place: end})
        async with pool.acquire() as held:
            assert await applied(held) == {place: end}
        assert await pool.fetchval("select count(*) from unmatched_runs") == 3
        # Tables that were emptied are filled from their beginning: nothing that has a record is passed over.
        await pool.execute("truncate applied_offsets, unmatched_runs")
        await feed.fill({place: (4, end)})
        async with pool.acquire() as held:
            assert await applied(held) == {}
        await feed.fill({place: (0, end)})
        assert await pool.fetchval("select count(*) from unmatched_runs") == 3
