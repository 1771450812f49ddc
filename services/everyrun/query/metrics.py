"""What the query service shows of the tables, as Prometheus reads it at ``/metrics``."""

from __future__ import annotations

from typing import Any

import asyncpg
from prometheus_client import CollectorRegistry, Gauge

from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")


class Metrics:
    """Counts that somebody should look at where they are not 0, in a registry of their own; ``look`` counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.quarantined = Gauge(
            "everyrun_quarantine_open", "Messages in the quarantine that nobody decided about.", registry=self.registry
        )
        self.unmatched = Gauge(
            "everyrun_unmatched_runs",
            "Runs that no input is known for, yet; 10001 stands for more than 10000.",
            registry=self.registry,
        )

    async def look(self, pool: asyncpg.Pool) -> None:
        """Count. Raises asyncpg's errors."""
        row: Any = await pool.fetchrow(_sql["watched_counts"])
        self.quarantined.set(row["quarantined"])
        self.unmatched.set(row["unmatched"])
