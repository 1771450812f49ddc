"""Run the replay service: jobs, the index of events, and the HTTP API."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.health import Health
from everyrun.http import ApiError
from everyrun.log import topics
from everyrun.memory import reduce_garbage_collection
from everyrun.replay.api import replay_api
from everyrun.replay.history.event_index import follow
from everyrun.replay.history.historian import Historian, historian
from everyrun.replay.jobs.worker import UNAVAILABLE, Worker
from everyrun.serve import StartingApp, http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import is_slow
from everyrun.store.probe import keep_probing, open_pool_when_up
from everyrun.telemetry import log

_log = log(__name__)


async def _work(settings: Settings, pool: asyncpg.Pool, health: Health) -> None:
    """Run jobs until cancelled. While Postgres or Kafka is unavailable, retry. An interrupted job resumes."""
    await topics.wait_until_valid(settings, health)
    worker = Worker(settings, pool)
    while True:
        try:
            health.ready("jobs")
            await worker.run()
        except UNAVAILABLE as error:
            _log.warning("running jobs failed; retrying", error=f"{type(error).__name__}: {error}")
            if not is_slow(error):
                health.not_ready("jobs", f"{type(error).__name__}: {error}")
        await asyncio.sleep(1.0)


class HistorianHolder:
    """Holds the historian. There is no historian until Kafka has answered for the first time."""

    def __init__(self) -> None:
        self._historian: Historian | None = None

    def get(self) -> Historian:
        """Return the historian. Raises ApiError 503 if there is no historian yet."""
        if self._historian is None:
            raise ApiError(503, "NOT_READY", "Kafka has not answered yet; see /readyz, and try again")
        return self._historian

    async def keep_open(self, settings: Settings, pool: asyncpg.Pool) -> None:
        """Keep a historian open until cancelled; retry while Kafka is unavailable."""
        while True:
            try:
                async with historian(settings, pool) as self._historian:
                    await asyncio.Event().wait()
            except (OSError, KafkaError) as error:
                _log.warning("opening the historian failed; retrying", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1.0)
            finally:
                self._historian = None


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Histories are read from the log, so the service is not ready without Kafka. Jobs wait in Postgres until they can
    # run, so a problem with jobs is reported, but the service stays ready. The index must have reached the end of the
    # log once. If it falls behind later, histories are slower, but still possible.
    health = Health("database", "topics", "kafka", at_start=("index",), reported=("jobs",))
    starting = StartingApp(health)
    async with AsyncExitStack() as server, AsyncExitStack() as stack:
        app = with_health(health, starting)
        await server.enter_async_context(http_server(settings.replay_listen, app, keep_alive=settings.keep_alive))
        pool = await stack.enter_async_context(await open_pool_when_up(settings, health, name="replay", max_size=4))
        # Close the server before the pool, because requests in progress use the pool.
        stack.push_async_callback(server.aclose)
        holder = HistorianHolder()
        tasks = [
            asyncio.create_task(_work(settings, pool, health)),
            asyncio.create_task(follow(settings, pool, health)),
            asyncio.create_task(holder.keep_open(settings, pool)),
            asyncio.create_task(topics.keep_checking(settings, health)),
            asyncio.create_task(keep_probing(settings, health, "database", name="replay")),
        ]
        starting.app = replay_api(settings, pool, holder.get)
        await stop.wait()
        # A running job stays RUNNING in Postgres, and the next process resumes it.
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5.0)


def main() -> None:
    """Run the replay service until SIGTERM or SIGINT."""
    reduce_garbage_collection()
    run_service("replay", ("kafka_bootstrap", "postgres_dsn"), _main)
