"""Publishes the present state of what a poll touched, as Postgres has it after the commit.

So whoever reads a result on the topic finds that state, or a later one, in the table. A row that the poll changed is
published as the poll left it, without reading it again; whether it is still so is looked at once it is acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from everyrun.log.batching import weighed
from everyrun.log.producer import Log
from everyrun.log.topics import LogIdentity
from everyrun.projection import output_records, tables
from everyrun.projection.apply import Applied
from everyrun.projection.feed import AWAY, Feed
from everyrun.projection.offsets import Position, behind, positions
from everyrun.projection.output_records import Row
from everyrun.projection.rules.run_selection import Home
from everyrun.projection.state import State
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(output_records.__file__, "apply.sql")
#: Rows published at once at most, and bytes of their runs. As Postgres stores them, that is compressed, where they are
#: read: a few times as much is in memory then.
_AT_ONCE, _PAGE_BYTES = 1000, 8 << 20


class BehindError(Exception):
    """The tables are behind what is to be published: of each partition the first offset missing, and the end."""

    def __init__(self, gaps: dict[Position, tuple[int, int]]) -> None:
        super().__init__(str(gaps))
        self.gaps = gaps


class Publisher:
    """Writes ``results`` and ``reports``.

    What it reads it reads where everything that is to be published is applied: tables that were emptied or replaced
    by older ones after the commit are filled first, or a state would be passed over and never be published.
    """

    def __init__(self, pool: asyncpg.Pool, identity: LogIdentity, results: Log, feed: Feed) -> None:
        self._pool = pool
        self._identity = identity
        self._results = results
        self._feed = feed

    async def publish(self, applied: Iterable[Applied], needed: Mapping[Position, int]) -> None:
        """Return when the present state of everything touched is acknowledged, and no input has moved on meanwhile.

        So the last record of an input is its newest state, whoever else writes it. ``needed`` is how far the tables
        must be applied. Waits while Postgres or Kafka is away.
        """
        everything = list(applied)
        await self._patiently(lambda: self._publish(everything, needed))

    async def _patiently(self, what: Callable[[], Awaitable[None]]) -> None:
        wait = 0.1
        gaps: dict[Position, tuple[int, int]] = {}
        while True:
            try:
                await self._feed.fill(gaps)
                gaps = {}
                return await what()
            except BehindError as error:
                gaps = error.gaps
            except AWAY as error:
                _log.warning("waiting to publish", error=f"{type(error).__name__}: {error}", seconds=wait)
                await self._feed.mend(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    @asynccontextmanager
    async def _applied_up_to(self, needed: Mapping[Position, int]) -> AsyncIterator[asyncpg.Connection]:
        """One moment's view of tables that are applied at least so far. Raises BehindError."""
        async with self._pool.acquire() as acquired, acquired.transaction(isolation="repeatable_read", readonly=True):
            connection = cast(asyncpg.Connection, acquired)
            gaps = behind(await positions(connection, self._identity), needed)
            if gaps:
                raise BehindError(gaps)
            yield connection

    async def _publish(self, applied: list[Applied], needed: Mapping[Position, int]) -> None:
        inputs: set[str] = set().union(*(a.inputs for a in applied))
        runs = list(set().union(*(a.runs for a in applied)))
        homes = set().union(*(a.attempts for a in applied))
        accepted = set().union(*(a.submissions for a in applied))
        states: dict[str, State] = {}
        for one in applied:
            states |= one.states
        known = {input_id: states[input_id] for input_id in inputs & states.keys()}
        others = list(inputs - known.keys())
        sizes: dict[str, int] = {}
        async with self._applied_up_to(needed) as connection:
            for start in range(0, max(len(others), len(runs)), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                sizes |= await _sizes(connection, others[part], runs[part])
                homes |= await _homes(connection, runs[part])
        for page in pages((i, len(state.run or b"")) for i, state in known.items()):
            await self._until_newest([_row(known[input_id]) for input_id in page], needed)
        await self._publish_rows({i: size for i, size in sizes.items() if i not in known}, needed)
        await self._publish_reports(homes, accepted, needed)

    async def _publish_rows(self, sizes: Mapping[str, int], needed: Mapping[Position, int]) -> None:
        """Publish the rows of these inputs, each with the size of its run, as the table has them."""
        for page in pages(sizes.items()):
            async with self._applied_up_to(needed) as connection:
                rows = await connection.fetch(_sql["present_rows"], page)
            await self._until_newest(rows, needed)

    async def _until_newest(self, rows: Sequence[Row], needed: Mapping[Position, int]) -> None:
        """Publish these rows, and again those that are not the newest any more once they are acknowledged.

        Another worker, or our own next transaction, may have written a later state since ours was read, and published
        it before ours. What it writes after we looked it publishes after us.
        """
        await self._results.append([output_records.result_record(row) for row in rows])
        published = {row["input_id"]: (row["version"], row["observed_at"]) for row in rows}
        moved = {}
        async with self._applied_up_to(needed) as connection:
            for input_id, version, observed_at, size in await connection.fetch(
                _sql["present_versions"], list(published)
            ):
                if (version, observed_at) != published[input_id]:
                    moved[input_id] = size
        if moved:
            await self._publish_rows(moved, needed)

    async def _publish_reports(self, homes: set[Home], accepted: set[str], needed: Mapping[Position, int]) -> None:
        reports = []
        async with self._applied_up_to(needed) as connection:
            if homes:
                columns = [list(column) for column in zip(*sorted(homes), strict=True)]
                rows = await connection.fetch(_sql["present_attempts"], *columns)
                reports = [output_records.batch_record(row, time.time()) for row in rows]
                accepted |= {row["submission_id"] for row in rows if row["state"] in ("SETTLED", "REFUSED")}
            if accepted:
                rows = await connection.fetch(_sql["settled_submissions"], sorted(accepted))
                reports += [output_records.submission_record(row, time.time()) for row in rows]
        if reports:
            await self._results.append(reports)


def pages(sizes: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Cut ids, each with the bytes of its run, into pages: at most a thousand, and no more bytes than one page has.

    One that is larger is a page by itself. Pure.
    """
    for page in weighed(sizes, lambda sized: sized[1], _PAGE_BYTES, _AT_ONCE):
        yield [identifier for identifier, _ in page]


def _row(state: State) -> Row:
    return dict(zip(tables.RESULT_COLUMNS, state.values(), strict=True))


async def _homes(connection: asyncpg.Connection, runs: list[str]) -> set[Home]:
    """The attempts that runs belong to: of a run that was applied before the report may not be published either."""
    if not runs:
        return set()
    return {(row["chunk"], row["attempt"]) for row in await connection.fetch(_sql["homes_by_run"], runs)}


async def _sizes(connection: asyncpg.Connection, inputs: list[str], runs: list[str]) -> dict[str, int]:
    """The inputs that are in the table, these and those that the runs stand for, each with the size of its run."""
    return {row["input_id"]: row["size"] for row in await connection.fetch(_sql["present_sizes"], inputs, runs)}
