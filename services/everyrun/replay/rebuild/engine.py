"""The bulk engine: a stretch of every partition of the log into the tables of one schema, as fast as they take it.

The same ``apply`` as the live path, without Faust. Two lanes, each with a connection and half of the partitions: while
one waits for Postgres the other decodes. What is applied is in the schema's own ``applied_offsets``, in the same
transactions as the tables, so an engine that was killed is begun again and goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import asyncpg

from everyrun.log.batching import join_polls, size_of, split_polls
from everyrun.log.cloudevents import Record
from everyrun.log.reading import OffsetRange, Partition, Poll, RecordRange, read_ranges
from everyrun.log.topics import LogIdentity
from everyrun.projection import tables
from everyrun.projection.feed import Feed
from everyrun.replay.export.selection import Source
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.store.session import connect
from everyrun.store.sql import beside

_sql = beside(__file__, "../replay.sql")

#: The topics that the tables are made from. ``batches`` is read first: then a run finds its row, and need not wait.
INPUTS = ("batches", "runs", "deliveries", "quarantine")
LANES = 2
#: Records, and bytes of their values, that go into one transaction at most; fewer of a small log, down to the least.
AT_ONCE, LEAST_AT_ONCE, BYTES_AT_ONCE = 4000, 10, 6 << 20
#: A killed engine has read up to eight transactions that it did not commit (in each lane one under way, one in its
#: queue, one waiting for the queue; two being read): this keeps three such deaths within a tenth.
_TRANSACTIONS = 250

Offsets = Mapping[Partition, int]
"""The next offset of each partition; one that is not named is at 0."""


class Progress:
    """How far an engine is: records read, applied, and to be applied in all; those that were there before it apart."""

    def __init__(self) -> None:
        self.before = 0
        self.total = 0
        self.read = 0
        self.applied = 0
        self._began = time.monotonic()

    def expect(self, start: Offsets, end: Offsets) -> None:
        """Add what is there before, and what is to be applied, on the way from ``start`` to ``end``."""
        self.before += sum(min(start.get(position, 0), offset) for position, offset in end.items())
        self.total += sum(max(offset - start.get(position, 0), 0) for position, offset in end.items())

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Records applied a second."""
        return self.applied / max(self.seconds, 1e-6)

    @property
    def left(self) -> float | None:
        """Seconds left at this rate; None where nothing is known of it yet."""
        return (self.total - self.applied) / self.rate if self.applied else None


class _Nowhere:
    """The quarantine of a rebuild, which publishes nothing: the live path has said it already, and that is read too."""

    async def append(self, records: Iterable[Record]) -> None:
        """Drop them."""


@asynccontextmanager
async def tables_pool(settings: Settings, schema: str, size: int = LANES) -> AsyncIterator[asyncpg.Pool]:
    """Connections that find the tables of a schema, for ``apply``; they do not wait for the disk at each commit.

    What a crash of Postgres takes of the last commits it takes of ``applied_offsets`` too.
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
    """One connection that finds the tables of a schema; jsonb comes as the bytes of its text."""
    connection = await connect(settings.postgres_dsn.get_secret_value(), name="replay", own={"search_path": schema})
    try:
        await tables.setup_connection(connection)
        yield connection
    finally:
        await connection.close()


async def applied_offsets(connection: asyncpg.Connection | asyncpg.Pool) -> dict[Partition, int]:
    """How far the tables are that this connection finds."""
    rows = await connection.fetch(_sql["applied_offsets"])
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


class Engine:
    """Applies the log to the tables that a pool of :func:`tables_pool` finds. One at a time for each schema.

    ``observe`` is given each stretch as it is read, before any of it is applied. ``source`` is read in the place of
    the live log. ``least_at_once`` records go into a transaction, if there are as many.
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
        self._feed = Feed(settings, pool, identity, _Nowhere())
        self._observe = observe
        self._at_once = AT_ONCE
        self.progress = Progress()

    async def run(self, start: Offsets, end: Offsets) -> None:
        """Apply what lies between, all partitions; ``start`` is what the tables say is applied.

        Raises errors of asyncpg and aiokafka, OSError and ForeignLogError; what was applied until then stays so.
        """
        ranges = {position: (start.get(position, 0), offset) for position, offset in end.items()}
        self.progress.expect(start, end)
        whole = (self.progress.before + self.progress.total) // _TRANSACTIONS
        self._at_once = max(self._least_at_once, min(AT_ONCE, whole))
        for topics in (INPUTS[:1], INPUTS[1:]):
            await self._run({position: range_ for position, range_ in ranges.items() if position[0] in topics})

    async def _run(self, ranges: Mapping[Partition, OffsetRange]) -> None:
        queues: list[asyncio.Queue[list[Poll]]] = [asyncio.Queue(1) for _ in range(LANES)]
        numbers = sorted({partition for _, partition in ranges})
        lane_of = {partition: place % LANES for place, partition in enumerate(numbers)}
        try:
            async with asyncio.TaskGroup() as group:
                lanes = [group.create_task(self._lane(queue)) for queue in queues]
                async for polls in self._read(ranges):
                    for lane, queue in enumerate(queues):
                        mine = [poll for poll in polls if lane_of[poll.partition] == lane]
                        if mine:
                            await queue.put(mine)
                for queue, lane_task in zip(queues, lanes, strict=True):
                    await queue.join()
                    lane_task.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[list[Poll]]:
        """Polls of all partitions, joined to about what two transactions take."""
        held: list[RecordRange] = []
        count = size = 0
        if self._source is not None:
            stretches = self._source.read(ranges)
        else:
            stretches = read_ranges(self._settings, ranges, max_records=self._at_once)
        async for stretch in stretches:
            if self._observe is not None:
                await self._observe(stretch)
            if not stretch.records:
                continue
            self.progress.read += len(stretch.records)
            held.append(stretch)
            count += len(stretch.records)
            size += size_of(stretch.records)
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
