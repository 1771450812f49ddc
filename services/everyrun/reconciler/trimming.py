"""Drops the content of runs that are not this installation's, after a time: other people's runs need not be kept whole.

What is dropped is an event, so the tables stay a function of the log; the log itself keeps the content.
"""

from __future__ import annotations

import time
from typing import Any

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import RunTrimmed
from everyrun.log.keys import lineage
from everyrun.log.producer import Log
from everyrun.reconciler.asking import SERVICE
from everyrun.settings import Settings
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "trimming.sql")

#: Seconds between two looks, and the most runs that one look takes.
_LOOK_EVERY = 60.0
_AT_ONCE = 500


class Trimming:
    """Looks for runs to trim every minute, and at once again while there are many."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, log: Log) -> None:
        self._settings = settings
        self._pool = pool
        self._log = log
        self._not_before = float("-inf")

    async def trim_due(self) -> None:
        """Trim if it is time to. Raises asyncpg's and Kafka's errors."""
        if time.monotonic() >= self._not_before and await self.trim() < _AT_ONCE:
            self._not_before = time.monotonic() + _LOOK_EVERY

    async def trim(self) -> int:
        """Publish run-trimmed for the oldest whole runs that are not ours; return how many. Raises as ``trim_due``."""
        rows = await self._pool.fetch(_sql["foreign"], self._settings.foreign_runs_kept, _AT_ONCE)
        if rows:
            await self._log.append([trimmed_record(row) for row in rows])
            _log.info("dropped the content of runs that are not ours", runs=len(rows))
        return len(rows)


def trimmed_record(row: Any) -> Record:
    """Return the record for a row of the statement ``foreign``. Pure."""
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
