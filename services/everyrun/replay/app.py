"""The replay service's process: rebuilds and audits as jobs, asked for and followed over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg

from everyrun.garbage import collect_seldom
from everyrun.log import topics
from everyrun.replay.api import replay_api
from everyrun.replay.jobs import AWAY, Worker
from everyrun.serve import Health, http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.telemetry import log

_log = log(__name__)


async def _pool(settings: Settings, health: Health) -> asyncpg.Pool:
    while True:
        try:
            return await open_pool(settings, name="replay", max_size=4)
        except (OSError, asyncpg.PostgresError) as error:
            health.not_ready("database", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _work(settings: Settings, pool: asyncpg.Pool, health: Health) -> None:
    """Work on jobs for ever; what is away is waited for, and the job goes on from where it was."""
    await topics.wait_until_right(settings, health)
    worker = Worker(settings, pool)
    while True:
        try:
            await pool.fetchval("select 1")
            health.ready("database")
            await worker.run()
        except AWAY as error:
            _log.warning("waiting", error=f"{type(error).__name__}: {error}")
            health.not_ready("database", f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.5)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    health = Health("database", "topics", "kafka")
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await _pool(settings, health))
        working = asyncio.create_task(_work(settings, pool, health))
        app = with_health(health, replay_api(settings, pool))
        await stack.enter_async_context(http_server(settings.replay_listen, app))
        await stop.wait()
        # The job stays RUNNING, and the next process goes on with it.
        working.cancel()
        await asyncio.wait([working], timeout=5.0)


def main() -> None:
    """Run the replay service until SIGTERM or SIGINT."""
    collect_seldom()
    run_service("replay", ("kafka_bootstrap", "postgres_dsn"), _main)
