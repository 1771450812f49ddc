"""The replay service's process: rebuilds and audits as jobs, history by an index that it keeps; over HTTP."""

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
from everyrun.replay.history.history import Historian, historian
from everyrun.replay.history.index import follow
from everyrun.replay.jobs.jobs import AWAY, Worker
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, is_slow, open_pool
from everyrun.store.probe import keep_probing
from everyrun.telemetry import log

_log = log(__name__)


async def _pool(settings: Settings, health: Health) -> asyncpg.Pool:
    while True:
        try:
            return await open_pool(settings, name="replay", max_size=4)
        except POSTGRES_AWAY as error:
            health.not_ready("database", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _work(settings: Settings, pool: asyncpg.Pool, health: Health) -> None:
    """Work on jobs for ever; what is away is waited for, and the job goes on from where it was."""
    await topics.wait_until_valid(settings, health)
    worker = Worker(settings, pool)
    while True:
        try:
            health.ready("jobs")
            await worker.run()
        except AWAY as error:
            _log.warning("waiting", error=f"{type(error).__name__}: {error}")
            if not is_slow(error):
                health.not_ready("jobs", f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.5)


class Asked:
    """Who answers for history: nobody until Kafka has answered once."""

    def __init__(self) -> None:
        self._historian: Historian | None = None

    def __call__(self) -> Historian:
        """The one that answers. Raises ApiError 503 where there is none yet."""
        if self._historian is None:
            raise ApiError(503, "NOT_READY", "Kafka has not answered yet; see /readyz and ask again")
        return self._historian

    async def answer(self, settings: Settings, pool: asyncpg.Pool) -> None:
        """Answer, for ever."""
        while True:
            try:
                async with historian(settings, pool) as self._historian:
                    await asyncio.Event().wait()
            except (OSError, KafkaError) as error:
                _log.warning("no history yet", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1.0)
            finally:
                self._historian = None


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Callers ask for histories, which are read from the log, and for jobs, which are kept in Postgres until they can
    # be worked on. Once it was made, an index that is behind makes a history slower, not impossible.
    health = Health("database", "topics", "kafka", at_start=("index",), reported=("jobs",))
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await _pool(settings, health))
        asked = Asked()
        tasks = [
            asyncio.create_task(_work(settings, pool, health)),
            asyncio.create_task(follow(settings, pool, health)),
            asyncio.create_task(asked.answer(settings, pool)),
            asyncio.create_task(topics.keep_checking(settings, health)),
            asyncio.create_task(keep_probing(settings, health, "database", name="replay")),
        ]
        app = with_health(health, replay_api(settings, pool, asked))
        await stack.enter_async_context(http_server(settings.replay_listen, app, keep_alive=settings.keep_alive))
        await stop.wait()
        # A job stays RUNNING, and the next process goes on with it.
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5.0)


def main() -> None:
    """Run the replay service until SIGTERM or SIGINT."""
    reduce_garbage_collection()
    run_service("replay", ("kafka_bootstrap", "postgres_dsn"), _main)
