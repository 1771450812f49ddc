"""Publishes the present state of what a poll touched, as Postgres has it after the commit.

So whoever reads a result on the topic finds that state, or a later one, in the table. A row that is still as the poll
left it is not read again, only its version is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import asyncpg

from everyrun.log.producer import Log
from everyrun.projection import publish, tables
from everyrun.projection.apply import Applied
from everyrun.projection.feed import AWAY, Feed
from everyrun.projection.join import Home
from everyrun.projection.offsets import Position, behind, positions
from everyrun.projection.state import State
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(publish.__file__, "apply.sql")
_AT_ONCE = 1000

T = TypeVar("T")


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

    def __init__(self, pool: asyncpg.Pool, cluster_id: str, results: Log, feed: Feed) -> None:
        self._pool = pool
        self._cluster_id = cluster_id
        self._results = results
        self._feed = feed

    async def publish(self, applied: Iterable[Applied], needed: Mapping[Position, int]) -> dict[str, str]:
        """Return when the present state of everything touched is acknowledged: the version published of each input.

        ``needed`` is how far the tables must be applied. Waits while Postgres or Kafka is away.
        """
        everything = list(applied)
        return await self._patiently(lambda: self._publish(everything, needed))

    async def publish_moved(self, published: Mapping[str, str], needed: Mapping[Position, int]) -> None:
        """Publish again the inputs that moved on meanwhile, so that the last record of a key is its newest."""

        async def read() -> set[str]:
            async with self._applied_up_to(needed) as connection:
                rows = await connection.fetch(_sql["present_versions"], list(published))
            return {row["input_id"] for row in rows if row["version"] != published[row["input_id"]]}

        moved = await self._patiently(read)
        if moved:
            await self.publish([Applied({}, moved, set(), set(), set())], needed)

    async def _patiently(self, what: Callable[[], Awaitable[T]]) -> T:
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
            gaps = behind(await positions(connection, self._cluster_id), needed)
            if gaps:
                raise BehindError(gaps)
            yield connection

    async def _publish(self, applied: list[Applied], needed: Mapping[Position, int]) -> dict[str, str]:
        inputs = list(set().union(*(a.inputs for a in applied)))
        runs = list(set().union(*(a.runs for a in applied)))
        homes = set().union(*(a.attempts for a in applied))
        accepted = set().union(*(a.submissions for a in applied))
        states: dict[str, State] = {}
        for one in applied:
            states |= one.states
        published: dict[str, str] = {}
        for start in range(0, max(len(inputs), len(runs)), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            async with self._applied_up_to(needed) as connection:
                present = await _present(connection, inputs[part], runs[part], states)
                homes |= await _homes(connection, runs[part])
            await self._results.append([publish.result_record(row) for row in present])
            published.update((row["input_id"], row["version"]) for row in present)
        reports = []
        async with self._applied_up_to(needed) as connection:
            if homes:
                columns = [list(column) for column in zip(*sorted(homes), strict=True)]
                rows = await connection.fetch(_sql["present_attempts"], *columns)
                reports = [publish.batch_record(row, time.time()) for row in rows]
                accepted |= {row["submission_id"] for row in rows if row["state"] in ("SETTLED", "REFUSED")}
            if accepted:
                rows = await connection.fetch(_sql["settled_submissions"], sorted(accepted))
                reports += [publish.submission_record(row, time.time()) for row in rows]
        if reports:
            await self._results.append(reports)
        return published


async def _homes(connection: asyncpg.Connection, runs: list[str]) -> set[Home]:
    """The attempts that runs belong to: of a run that was applied before the report may not be published either."""
    if not runs:
        return set()
    return {(row["chunk"], row["attempt"]) for row in await connection.fetch(_sql["homes_by_run"], runs)}


async def _present(
    connection: asyncpg.Connection, inputs: list[str], runs: list[str], states: Mapping[str, State]
) -> list[publish.Row]:
    """The rows as they are now, each once: out of ``states`` where the table still has that state."""
    found: dict[str, publish.Row] = {}
    known = [input_id for input_id in inputs if input_id in states]
    if known:
        for input_id, version, observed_at in await connection.fetch(_sql["present_versions"], known):
            row = dict(zip(tables.RESULT_COLUMNS, states[input_id].values(), strict=True))
            if (row["version"], row["observed_at"]) == (version, observed_at):
                found[input_id] = row
    others = [input_id for input_id in inputs if input_id not in found]
    if others or runs:
        for whole in await connection.fetch(_sql["present_rows"], others, runs):
            found[whole["input_id"]] = whole
    return list(found.values())
