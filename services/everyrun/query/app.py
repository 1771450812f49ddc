"""The query service's process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import asyncpg

from everyrun.health import Health
from everyrun.query.api import query_api
from everyrun.query.gate import AT_A_TIME
from everyrun.query.metrics import Metrics
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, open_pool
from everyrun.store.probe import keep_probing


async def _pool(settings: Settings, health: Health) -> asyncpg.Pool:
    while True:
        try:
            # Reports, pages of results, and two that neither can take.
            return await open_pool(settings, name="query", max_size=2 * AT_A_TIME + 2)
        except POSTGRES_AWAY as error:
            health.not_ready("database", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _count(pool: asyncpg.Pool, metrics: Metrics) -> None:
    """Count every fifteen seconds, for ever; while the database is unavailable, the last counts stay."""
    while True:
        with suppress(*POSTGRES_AWAY):
            await metrics.look(pool)
        await asyncio.sleep(15.0)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Callers ask for what is in the tables: Postgres alone is needed for that.
    health, metrics = Health("database"), Metrics()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await _pool(settings, health))
        looking = [
            asyncio.create_task(keep_probing(settings, health, "database", name="query", writes=False)),
            asyncio.create_task(_count(pool, metrics)),
        ]
        await stack.enter_async_context(
            http_server(
                settings.query_listen,
                with_health(health, query_api(settings, pool), metrics.registry),
                keep_alive=settings.keep_alive,
            )
        )
        await stop.wait()
        for task in looking:
            task.cancel()


def main() -> None:
    """Run the query service until SIGTERM or SIGINT."""
    run_service("query", ("postgres_dsn",), _main)
