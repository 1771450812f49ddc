"""Run the notifier: read the log, send deliveries, and serve the API."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.health import Health
from everyrun.log import topics
from everyrun.notifier.api import notifier_api
from everyrun.notifier.changes import publish_changes
from everyrun.notifier.metrics import Metrics
from everyrun.notifier.planner import OtherLogError, Planner
from everyrun.notifier.sender import Sender, clean_up
from everyrun.notifier.transport import Transport
from everyrun.serve import StartingApp, http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.store.probe import keep_probing, open_pool_when_up
from everyrun.telemetry import log

_log = log(__name__)
_UNAVAILABLE = (*POSTGRES_AWAY, KafkaError, OtherLogError)
#: Seconds that requests in progress get when the service stops.
_STOP_WITHIN = 5.0
#: Seconds between two clean-ups, and between two updates of the metrics.
_CLEAN_EVERY, _COUNT_EVERY = 60.0, 15.0
#: Seconds between two looks for the first receiver and for changes to publish. What this process changes is noticed at
#: once; the looks are for what other processes change, and for changes that could not be published.
_LOOK_EVERY = 5.0


async def _wait(wake: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wake.wait(), _LOOK_EVERY)
    wake.clear()


async def _read(settings: Settings, planner: Planner, health: Health, wake: asyncio.Event) -> None:
    """Read the log whenever there are receivers. While Kafka or Postgres is unavailable, retry."""
    await topics.wait_until_valid(settings, health)
    health.ready("reading")
    while True:
        try:
            if await planner.has_subscribers():
                await planner.run(lambda: health.ready("reading"))
            health.ready("reading")
        except _UNAVAILABLE as error:
            _log.warning("cannot read the log; will retry", error=f"{type(error).__name__}: {error}")
            if not is_slow(error):
                health.not_ready("reading", f"{type(error).__name__}: {error}")
            await asyncio.sleep(1.0)
            continue
        await _wait(wake)


async def _send(sender: Sender, health: Health) -> None:
    while True:
        try:
            health.ready("sending")
            await sender.run()
        except POSTGRES_AWAY as error:
            _log.warning("cannot send; will retry", error=f"{type(error).__name__}: {error}")
            if not is_slow(error):
                health.not_ready("sending", f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.5)


async def _publish(settings: Settings, pool: asyncpg.Pool, wake: asyncio.Event) -> None:
    """Publish what people change about receivers. While Kafka or Postgres is unavailable, retry."""
    while True:
        try:
            await publish_changes(settings, pool)
        except (*POSTGRES_AWAY, KafkaError) as error:
            _log.warning("cannot publish a change; will retry", error=f"{type(error).__name__}: {error}")
        await _wait(wake)


async def _tend(settings: Settings, pool: asyncpg.Pool, metrics: Metrics) -> None:
    """Clean up and count from time to time."""
    since_cleaning = _CLEAN_EVERY
    while True:
        try:
            if since_cleaning >= _CLEAN_EVERY:
                await clean_up(settings, pool, metrics)
                since_cleaning = 0.0
            await metrics.update(pool)
        except POSTGRES_AWAY as error:
            _log.warning("cannot clean up; will retry", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(_COUNT_EVERY)
        since_cleaning += _COUNT_EVERY


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Callers need only the database. Events wait in the log until they can be read, and deliveries in the database.
    health = Health("database", at_start=("topics", "kafka"), reported=("reading", "sending"))
    starting, metrics = StartingApp(health), Metrics()
    async with AsyncExitStack() as server, AsyncExitStack() as stack:
        app = with_health(health, starting, metrics.registry)
        await server.enter_async_context(http_server(settings.notifier_listen, app, keep_alive=settings.keep_alive))
        pool = await stack.enter_async_context(await open_pool_when_up(settings, health, name="notifier", max_size=10))
        transport = await stack.enter_async_context(Transport(settings))
        # Close the server first, because requests in progress use the pool.
        stack.push_async_callback(server.aclose)
        sender = Sender(settings, pool, transport, metrics)
        planner = Planner(settings, pool, sender.wake)
        wakes = (sender.wake, asyncio.Event(), asyncio.Event())

        def wake() -> None:
            for event in wakes:
                event.set()

        starting.app = notifier_api(settings, pool, transport, wake)
        reading = asyncio.create_task(_read(settings, planner, health, wakes[1]))
        tasks = [
            asyncio.create_task(_send(sender, health)),
            asyncio.create_task(_publish(settings, pool, wakes[2])),
            asyncio.create_task(_tend(settings, pool, metrics)),
            asyncio.create_task(topics.keep_checking(settings, health)),
            asyncio.create_task(keep_probing(settings, health, "database", name="notifier")),
        ]
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([reading, *tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in (reading, *tasks):
            task.cancel()
        await asyncio.wait([reading, *tasks], timeout=2.0)
        await sender.stop(_STOP_WITHIN)
        for ended in done - {stopped}:
            # If a task failed, this raises its error. That ends the process, so that it is restarted.
            ended.result()


def main() -> None:
    """Run the notifier until SIGTERM or SIGINT."""
    run_service("notifier", ("kafka_bootstrap", "postgres_dsn"), _main)
