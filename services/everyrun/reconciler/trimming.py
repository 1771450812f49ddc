"""Remove the content of foreign runs from the result tables after some time, to save space.

A foreign run is one that another caller in the same workspace started. This module only writes an event to the log.
When the processor reads the event, it removes the content. So the tables can still be rebuilt from the log alone. The
log itself keeps the content.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import RunTrimmed
from everyrun.log.keys import lineage
from everyrun.log.producer import Log
from everyrun.reconciler.run_fetcher import SERVICE
from everyrun.settings import Settings
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "trimming.sql")

#: Seconds between two searches for runs to trim. Maximum number of runs that are trimmed at a time.
_LOOK_EVERY = 60.0
_AT_ONCE = 500


class Trimming:
    """Searches once a minute for runs to trim.

    If there are more than can be trimmed at a time, it continues at once.
    """

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, log: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._log = log
        self._clock = clock
        self._not_before = float("-inf")

    async def trim_due(self) -> None:
        """Trim runs, if a minute has passed since the last search. Raises asyncpg's and Kafka's errors."""
        if self._clock() >= self._not_before and await self.trim() < _AT_ONCE:
            self._not_before = self._clock() + _LOOK_EVERY

    async def trim(self) -> int:
        """Publish ``run-trimmed`` for foreign runs that still have content, oldest first. Return the number of runs.

        Raises asyncpg's and Kafka's errors.
        """
        rows = await self._pool.fetch(_sql["foreign_runs"], self._settings.foreign_runs_kept, _AT_ONCE)
        if rows:
            await self._log.append([trimmed_record(row) for row in rows])
            _log.info("dropped the content of foreign runs", runs=len(rows))
        return len(rows)


def trimmed_record(row: asyncpg.Record) -> Record:
    """Return the ``run-trimmed`` record for a row that the SQL statement ``foreign_runs`` returned. Pure."""
    event = RunTrimmed(source=row["source"], run=msgspec.Raw(row["head"].encode()), order=row["version"])
    run_id, chunk = row["run_id"], lineage(row["chunk"] or "")
    return record(
        "runs",
        event,
        key=chunk or row["batch_id"] or run_id,
        id=f"trim/{run_id}/{row['version']}",
        source=SERVICE,
        time=timestamp(row["observed_at"]),
        subject=run_id,
    )
