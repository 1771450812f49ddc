"""The query service's process."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

import asyncpg

from everyrun.query.api import query_api
from everyrun.query.gate import AT_A_TIME
from everyrun.query.metrics import Metrics
from everyrun.serve import Health, http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import is_slow, open_pool


async def _pool(settings: Settings, health: Health) -> asyncpg.Pool:
    while True:
        try:
            # Reports, pages of results, and two that neither can take.
            return await open_pool(settings, name="query", max_size=2 * AT_A_TIME + 2)
        except (OSError, asyncpg.PostgresError) as error:
            health.not_ready("database", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _look(pool: asyncpg.Pool, health: Health, metrics: Metrics) -> None:
    """Say in readyz whether the database answers, and count every fifteen seconds, for ever."""
    for turn in itertools.count():
        try:
            await pool.fetchval("select 1")
            if turn % 15 == 0:
                await metrics.look(pool)
            health.ready("database")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if not is_slow(error):
                health.not_ready("database", f"{type(error).__name__}: {error}")
        await asyncio.sleep(1.0)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    health, metrics = Health("database"), Metrics()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await _pool(settings, health))
        looking = asyncio.create_task(_look(pool, health, metrics))
        await stack.enter_async_context(
            http_server(settings.query_listen, with_health(health, query_api(settings, pool), metrics.registry))
        )
        await stop.wait()
        looking.cancel()


def main() -> None:
    """Run the query service until SIGTERM or SIGINT."""
    run_service("query", ("postgres_dsn",), _main)
