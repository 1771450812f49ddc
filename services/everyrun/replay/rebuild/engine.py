"""Apply a range of the log to the tables of one schema, in bulk.

The engine applies records with the same :class:`Feed` as the processor, but without Faust. It works in two lanes, each
with its own connection and half of the partitions, so that one lane can decode while the other waits for Postgres. Each
transaction also updates ``applied_offsets`` in the same schema; after a kill, the next engine continues from there.
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
#: Limits of one transaction: the number of records, and the bytes of their values.
MAX_RECORDS, MAX_BYTES = 4000, 6 << 20
#: A small log is applied in smaller transactions (see _TRANSACTIONS), but never with fewer records than this.
MIN_RECORDS = 10
#: A log that is not large is divided into about this many transactions, so that a kill loses little work. It loses at
#: most eight transactions: three per lane (one in progress, one queued, one waiting for room in the queue) and two that
#: are being read. So three kills cost at most a tenth of the work.
_TRANSACTIONS = 250

Offsets = Mapping[Partition, int]
"""The next offset of each partition. A partition that is not in the mapping is at offset 0."""


class _NoQuarantine:
    """Drops quarantined messages: the processor has already published them, and the engine reads them from the log."""

    async def append(self, records: Iterable[Record]) -> None:
        """Drop the records."""


@asynccontextmanager
async def tables_pool(settings: Settings, schema: str, size: int = LANES) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool for an engine: its connections use the tables of a schema, and commits do not wait for the disk.

    If Postgres crashes, it may lose the last commits. The tables and ``applied_offsets`` then lose the same commits, so
    the next engine applies those records again.
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
    """Open a connection that uses the tables of a schema. It returns jsonb columns as bytes of JSON text."""
    connection = await connect(settings.postgres_dsn.get_secret_value(), name="replay", own={"search_path": schema})
    try:
        await tables.setup_connection(connection)
        yield connection
    finally:
        await connection.close()


async def applied_offsets(connection: asyncpg.Connection | asyncpg.Pool) -> dict[Partition, int]:
    """Return, by partition, the next offset to apply to the tables that this connection uses."""
    rows = await connection.fetch(_sql["applied_offsets"])
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


class Engine:
    """Applies the log to the tables that a pool uses (see :func:`tables_pool`).

    Two engines must never apply the same partition to the same schema.

    - ``observe`` is called with each range of records before any record of the range is applied.
    - If ``source`` is given, records are read from it instead of from Kafka.
    - ``min_records`` is the minimum number of records per transaction.
    """

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        identity: LogIdentity,
        *,
        observe: Callable[[RecordRange], Awaitable[None]] | None = None,
        source: Source | None = None,
        min_records: int = MIN_RECORDS,
    ) -> None:
        self._min_records = min_records
        self._settings = settings
        self._source = source
        self._feed = Feed(settings, pool, identity, _NoQuarantine())
        self._observe = observe
        self._max_records = MAX_RECORDS
        self.progress = RebuildProgress()

    async def run(self, start: Offsets, end: Offsets) -> None:
        """Apply the records of every partition from ``start`` up to, but not including, ``end``.

        ``start`` must be the applied offsets of the tables. Raises ForeignLogError, OSError, and errors of asyncpg and
        aiokafka; the records that were applied before the error stay in the tables.
        """
        ranges = {partition: (start.get(partition, 0), offset) for partition, offset in end.items()}
        self.progress.expect(start, end)
        per_transaction = (self.progress.before + self.progress.total) // _TRANSACTIONS
        self._max_records = max(self._min_records, min(MAX_RECORDS, per_transaction))
        # The topic `batches` comes first: a run is then matched at once, because its batch is already known.
        for topics in (INPUTS[:1], INPUTS[1:]):
            await self._run({partition: range_ for partition, range_ in ranges.items() if partition[0] in topics})

    async def _run(self, ranges: Mapping[Partition, OffsetRange]) -> None:
        queues: list[asyncio.Queue[list[Poll]]] = [asyncio.Queue(1) for _ in range(LANES)]
        numbers = sorted({number for _, number in ranges})
        lane_of = {number: index % LANES for index, number in enumerate(numbers)}
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
        """Yield lists of polls. Each list contains about enough records for one transaction in each lane."""
        held: list[RecordRange] = []
        count = size = 0
        if self._source is not None:
            record_ranges = self._source.read(ranges)
        else:
            record_ranges = read_ranges(self._settings, ranges, max_records=self._max_records)
        async for record_range in record_ranges:
            if self._observe is not None:
                await self._observe(record_range)
            if not record_range.records:
                continue
            self.progress.read += len(record_range.records)
            held.append(record_range)
            count += len(record_range.records)
            size += size_of(record_range.records)
            if count >= self._max_records * LANES or size >= MAX_BYTES * LANES:
                yield join_polls(held)
                held, count, size = [], 0, 0
        if held:
            yield join_polls(held)

    async def _lane(self, queue: asyncio.Queue[list[Poll]]) -> None:
        while True:
            for polls in split_polls(await queue.get(), self._max_records, MAX_BYTES):
                await self._feed.apply_once(polls)
                self.progress.applied += sum(len(poll.records) for poll in polls)
            queue.task_done()
