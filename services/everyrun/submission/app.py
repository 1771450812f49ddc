"""The submission service's process: the API, the announcer, the dispatcher."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg

from everyrun.extend.budget import shared
from everyrun.extend.client import Extend
from everyrun.extend.installation_binding import PART, wait_until_bound
from everyrun.extend.metrics import count_requests
from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, is_slow, open_pool
from everyrun.store.probe import keep_probing
from everyrun.store.sql import beside
from everyrun.submission.api.request_body import Uploads
from everyrun.submission.api.submissions import submission_api
from everyrun.submission.dispatch.dispatcher import AWAY, Dispatcher
from everyrun.submission.dispatch.resolver import Resolver
from everyrun.submission.dispatch.transitions import Transitions
from everyrun.submission.doubts import Doubts
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.keeper import Announcer, forget, repeat
from everyrun.submission.metrics import Metrics
from everyrun.submission.recovery.queue_recovery import Level
from everyrun.submission.token_events import announce_tokens
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
_STOP_WITHIN = 8.0


async def _pool(settings: Settings, health: Health) -> asyncpg.Pool:
    while True:
        try:
            return await open_pool(settings, name="submission", max_size=12)
        except POSTGRES_AWAY as error:
            health.not_ready("database", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _kept_level(level: Level, health: Health) -> None:
    """Bring the queue level with the log; readyz says what is in the way."""
    try:
        await level.advance()
    except AWAY as error:
        if not is_slow(error):
            health.not_ready("log_position", str(error) or type(error).__name__)
        raise
    health.ready("log_position")


async def _is_level(level: Level, health: Health) -> None:
    while True:
        try:
            return await _kept_level(level, health)
        except AWAY as error:
            _log.warning("waiting to be level with the log", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Callers ask that inputs be taken in, and those are kept in Postgres: they are announced and sent once Kafka is
    # back. At the start Kafka is needed all the same: a restored queue learns from the log what it was handed before.
    health = Health(PART, "database", at_start=("topics", "kafka", "log_position"))
    # Without the API: what it took in would be for the other Extend.
    async with http_server(settings.submission_listen, with_health(health), drain=1.0, keep_alive=settings.keep_alive):
        await wait_until_bound(settings, health)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await _pool(settings, health))
        extend = await stack.enter_async_context(Extend(settings, budget=shared(settings)))
        await topics.wait_until_valid(settings, health)
        producer = await stack.enter_async_context(Producer(settings, compression="zstd"))
        metrics = Metrics()
        count_requests(metrics.registry, extend.sent)
        installation = await pool.fetchval(_sql["installation"])
        level = Level(settings, pool)
        transitions = Transitions(settings, pool, producer)
        dispatcher = Dispatcher(settings, pool, extend, producer, installation, level, transitions)
        resolver = Resolver(settings, pool, level, transitions, installation)
        doubts = Doubts(pool, extend, level, transitions, installation)
        announcer = Announcer(pool, producer, dispatcher)
        uploads = Uploads()
        metrics.count_uploads(uploads)
        workflows = Workflows(extend)
        served = submission_api(settings, pool, announcer, producer, doubts, level, uploads, workflows)
        app = with_health(health, served, metrics.registry)
        await stack.enter_async_context(http_server(settings.submission_listen, app, keep_alive=settings.keep_alive))
        health.ready("database")
        await _is_level(level, health)
        tasks = [
            asyncio.create_task(repeat(announcer.announce, 1.0, stop, announcer.poke)),
            asyncio.create_task(repeat(lambda: announce_tokens(pool, producer), 1.0, stop)),
            asyncio.create_task(repeat(resolver.resolve, 1.0, stop)),
            asyncio.create_task(repeat(lambda: _kept_level(level, health), 30.0, stop)),
            asyncio.create_task(repeat(lambda: forget(pool, producer, settings), 60.0, stop)),
            asyncio.create_task(repeat(lambda: metrics.look(pool), 15.0, stop)),
            *(asyncio.create_task(dispatcher.work(stop)) for _ in range(settings.dispatch_workers)),
        ]
        looking = [
            asyncio.create_task(topics.keep_checking(settings, health)),
            asyncio.create_task(keep_probing(settings, health, "database", name="submission")),
        ]
        await stop.wait()
        for task in looking:
            task.cancel()
        # Calls under way may end; what does not end in time stays `sending` and is resolved after the next start.
        _, unfinished = await asyncio.wait(tasks, timeout=_STOP_WITHIN)
        for task in unfinished:
            task.cancel()


def main() -> None:
    """Run the submission service until SIGTERM or SIGINT."""
    run_service("submission", ("kafka_bootstrap", "postgres_dsn", "extend_api_key"), _main)
