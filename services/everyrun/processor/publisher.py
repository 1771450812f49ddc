"""Publishes the present state of what a poll touched, read from Postgres after the commit.

So whoever reads a result on the topic finds that state, or a later one, in the table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.log.producer import Log
from everyrun.projection import publish
from everyrun.projection.apply import Applied
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(publish.__file__, "apply.sql")
_AT_ONCE = 1000


class Publisher:
    """Writes ``results`` and ``reports``."""

    def __init__(self, pool: asyncpg.Pool, results: Log) -> None:
        self._pool = pool
        self._results = results

    async def publish(self, applied: Iterable[Applied]) -> dict[str, str]:
        """Return when the present state of everything touched is acknowledged: the version published of each input.

        Waits while Postgres or Kafka is away.
        """
        wait = 0.1
        everything = list(applied)
        while True:
            try:
                return await self._publish(everything)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, KafkaError) as error:
                _log.warning("waiting to publish", error=f"{type(error).__name__}: {error}", seconds=wait)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    async def publish_moved(self, published: dict[str, str]) -> None:
        """Publish again the inputs that moved on meanwhile, so that the last record of a key is its newest."""
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(_sql["present_versions"], list(published))
        moved = {row["input_id"] for row in rows if row["version"] != published[row["input_id"]]}
        if moved:
            await self.publish([Applied({}, moved, set(), set(), set())])

    async def _publish(self, applied: list[Applied]) -> dict[str, str]:
        inputs = list(set().union(*(a.inputs for a in applied)))
        runs = list(set().union(*(a.runs for a in applied)))
        homes = sorted(set().union(*(a.attempts for a in applied)))
        accepted = set().union(*(a.submissions for a in applied))
        published: dict[str, str] = {}
        async with self._pool.acquire() as connection:
            for start in range(0, max(len(inputs), len(runs)), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                rows = await connection.fetch(_sql["present_rows"], inputs[part], runs[part])
                await self._results.append([publish.result_record(row) for row in rows])
                published.update((row["input_id"], row["version"]) for row in rows)
            reports = []
            if homes:
                columns = [chunk for chunk, _ in homes], [attempt for _, attempt in homes]
                rows = await connection.fetch(_sql["present_attempts"], *columns)
                reports = [publish.batch_record(row, time.time()) for row in rows]
                accepted |= {row["submission_id"] for row in rows if row["state"] in ("SETTLED", "REFUSED")}
            if accepted:
                rows = await connection.fetch(_sql["settled_submissions"], sorted(accepted))
                reports += [publish.submission_record(row, time.time()) for row in rows]
        if reports:
            await self._results.append(reports)
        return published
