"""Run the query service."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import asyncpg
from prometheus_client import CollectorRegistry, Gauge

from everyrun.health import Health
from everyrun.query.api import query_api
from everyrun.query.gate import AT_A_TIME
from everyrun.serve import StartingApp, http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.probe import keep_probing, open_pool_when_up
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")


class Metrics:
    """Gauges of problems. If one of them is not 0, a person should look for the cause."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.quarantined = Gauge(
            "everyrun_quarantine_open", "Quarantined messages without a decision.", registry=self.registry
        )
        self.unmatched = Gauge(
            "everyrun_unmatched_runs",
            "Runs without a known input. 10001 means more than 10000, because counting stops there.",
            registry=self.registry,
        )

    async def refresh(self, pool: asyncpg.Pool) -> None:
        """Count in Postgres, and set the gauges. Raises asyncpg's errors."""
        row = await pool.fetchrow(_sql["watched_counts"])
        assert row is not None
        self.quarantined.set(row["quarantined"])
        self.unmatched.set(row["unmatched"])


async def _keep_counting(pool: asyncpg.Pool, metrics: Metrics) -> None:
    """Refresh the metrics every fifteen seconds. While the database is unavailable, they keep their last values."""
    while True:
        with suppress(*POSTGRES_AWAY):
            await metrics.refresh(pool)
        await asyncio.sleep(15.0)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Callers only read tables, so the service is ready if Postgres works, even while Kafka does not.
    health, metrics = Health("database"), Metrics()
    starting = StartingApp(health)
    async with AsyncExitStack() as server, AsyncExitStack() as stack:
        app = with_health(health, starting, metrics.registry)
        await server.enter_async_context(http_server(settings.query_listen, app, keep_alive=settings.keep_alive))
        # Enough connections for all slow reads that the three gates let in, and two for everything else.
        pool = await stack.enter_async_context(
            await open_pool_when_up(settings, health, name="query", max_size=3 * AT_A_TIME + 2)
        )
        # The stack closes in reverse order: first the server, after its requests have ended, and then the pool that
        # they use.
        stack.push_async_callback(server.aclose)
        tasks = [
            asyncio.create_task(keep_probing(settings, health, "database", name="query", writes=False)),
            asyncio.create_task(_keep_counting(pool, metrics)),
        ]
        starting.app = query_api(settings, pool, stop)
        await stop.wait()
        for task in tasks:
            task.cancel()


def main() -> None:
    """Run the query service until SIGTERM or SIGINT."""
    run_service("query", ("postgres_dsn",), _main)
