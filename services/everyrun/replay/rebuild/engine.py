"""Apply a range of the log to the tables of one schema, in bulk.

The engine calls the same ``apply`` as the processor, without Faust. It works in two lanes, each with a connection and
half of the partitions: one lane decodes while the other waits for Postgres. Each transaction also moves the schema's
``applied_offsets``, so an engine that was killed resumes from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import asyncpg

from everyrun.log.batching import join_polls, size_of, split_polls
from everyrun.log.cloudevents import Record
from everyrun.log.reading import OffsetRange, Partition, Poll, RecordRange, read_ranges
from everyrun.log.topics import LogIdentity
from everyrun.projection import tables
from everyrun.projection.feed import Feed
from everyrun.projection.offsets import INPUTS
from everyrun.replay.export.selection import Source
from everyrun.replay.progress import RebuildProgress
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.store.session import connect
from everyrun.store.sql import beside

_sql = beside(__file__, "engine.sql")

LANES = 2
#: Limits of one transaction: records, and bytes of their values. A small log has transactions of fewer records, but of
#: at least LEAST_AT_ONCE.
AT_ONCE, LEAST_AT_ONCE, BYTES_AT_ONCE = 4000, 10, 6 << 20
#: A log is cut into about as many transactions. A killed engine loses up to eight of them: in each lane one in
#: progress, one in its queue and one waiting for the queue, and two that are being read. So three kills cost at most a
#: tenth of the work.
_TRANSACTIONS = 250

Offsets = Mapping[Partition, int]
"""The next offset of each partition; a partition that is not named is at 0."""


class _NoQuarantine:
    """Publishes no quarantined messages: the processor did, and the rebuild reads what it published."""

    async def append(self, records: Iterable[Record]) -> None:
        """Drop the records."""


@asynccontextmanager
async def tables_pool(settings: Settings, schema: str, size: int = LANES) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool whose connections use the tables of a schema, for ``apply``. Commits do not wait for the disk.

    If Postgres crashes, the last commits may be lost, but tables and ``applied_offsets`` lose the same ones.
    """
    async with await open_pool(
        settings,
        name="replay",
        max_size=size,
        command_timeout=None,
        own={"search_path": schema, "synchronous_commit": "off"},
        setup=tables.setup_connection,
    ) as pool:
        yield pool


@asynccontextmanager
async def tables_connection(settings: Settings, schema: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection that uses the tables of a schema; it returns jsonb as bytes of JSON text."""
    connection = await connect(settings.postgres_dsn.get_secret_value(), name="replay", own={"search_path": schema})
    try:
        await tables.setup_connection(connection)
        yield connection
    finally:
        await connection.close()


async def applied_offsets(connection: asyncpg.Connection | asyncpg.Pool) -> dict[Partition, int]:
    """Return the next offset that the tables of this connection need, by partition."""
    rows = await connection.fetch(_sql["applied_offsets"])
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


class Engine:
    """Applies the log to the tables of a pool (:func:`tables_pool`). Run one engine per schema and partition.

    ``observe`` gets each range of records before any of it is applied. ``source`` is read instead of the live log.
    ``least_at_once`` is the minimum number of records of a transaction, if the log has as many.
    """

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        identity: LogIdentity,
        *,
        observe: Callable[[RecordRange], Awaitable[None]] | None = None,
        source: Source | None = None,
        least_at_once: int = LEAST_AT_ONCE,
    ) -> None:
        self._least_at_once = least_at_once
        self._settings = settings
        self._source = source
        self._feed = Feed(settings, pool, identity, _NoQuarantine())
        self._observe = observe
        self._at_once = AT_ONCE
        self.progress = RebuildProgress()

    async def run(self, start: Offsets, end: Offsets) -> None:
        """Apply the records of every partition from ``start``, which must be the applied offsets, up to ``end``.

        Raises ForeignLogError, OSError, and errors of asyncpg and aiokafka. What was applied until then stays.
        """
        ranges = {position: (start.get(position, 0), offset) for position, offset in end.items()}
        self.progress.expect(start, end)
        per_transaction = (self.progress.before + self.progress.total) // _TRANSACTIONS
        self._at_once = max(self._least_at_once, min(AT_ONCE, per_transaction))
        for topics in (INPUTS[:1], INPUTS[1:]):
            await self._run({position: range_ for position, range_ in ranges.items() if position[0] in topics})

    async def _run(self, ranges: Mapping[Partition, OffsetRange]) -> None:
        queues: list[asyncio.Queue[list[Poll]]] = [asyncio.Queue(1) for _ in range(LANES)]
        numbers = sorted({partition for _, partition in ranges})
        lane_of = {partition: index % LANES for index, partition in enumerate(numbers)}
        try:
            async with asyncio.TaskGroup() as group:
                lanes = [group.create_task(self._lane(queue)) for queue in queues]
                async for polls in self._read(ranges):
                    for lane, queue in enumerate(queues):
                        of_lane = [poll for poll in polls if lane_of[poll.partition] == lane]
                        if of_lane:
                            await queue.put(of_lane)
                for queue, lane_task in zip(queues, lanes, strict=True):
                    await queue.join()
                    lane_task.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[list[Poll]]:
        """Yield polls of all partitions, each time about as many records as one transaction of every lane takes."""
        held: list[RecordRange] = []
        count = size = 0
        if self._source is not None:
            record_ranges = self._source.read(ranges)
        else:
            record_ranges = read_ranges(self._settings, ranges, max_records=self._at_once)
        async for record_range in record_ranges:
            if self._observe is not None:
                await self._observe(record_range)
            if not record_range.records:
                continue
            self.progress.read += len(record_range.records)
            held.append(record_range)
            count += len(record_range.records)
            size += size_of(record_range.records)
            if count >= self._at_once * LANES or size >= BYTES_AT_ONCE * LANES:
                yield join_polls(held)
                held, count, size = [], 0, 0
        if held:
            yield join_polls(held)

    async def _lane(self, queue: asyncio.Queue[list[Poll]]) -> None:
        while True:
            for polls in split_polls(await queue.get(), self._at_once, BYTES_AT_ONCE):
                await self._feed.apply_once(polls)
                self.progress.applied += sum(len(poll.records) for poll in polls)
            queue.task_done()
