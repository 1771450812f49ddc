"""Run the reconciler. Every process completes deferred deliveries.

Only the leader polls, sweeps, and trims the content of foreign runs (see ``trimming``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from everyrun import telemetry
from everyrun.extend.budget import shared
from everyrun.extend.client import Extend
from everyrun.extend.installation_binding import PART, wait_until_bound
from everyrun.extend.metrics import count_requests
from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.reconciler.deliveries import Deliveries, deliveries_consumer
from everyrun.reconciler.links import Links
from everyrun.reconciler.polling import Polling
from everyrun.reconciler.run_fetcher import RunFetcher
from everyrun.reconciler.run_lists import RunLists
from everyrun.reconciler.sweeps import Sweeps
from everyrun.reconciler.trimming import Trimming
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, SlowStatementError, open_pool
from everyrun.store.probe import keep_probing
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")
_AWAY = (*POSTGRES_AWAY, KafkaError)
_STOP_WITHIN = 5.0


async def _keep_running(health: Health, part: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` again and again, with pauses of half a second. Outages of Kafka and Postgres do not end this.

    While Kafka or Postgres does not answer, readyz shows ``part`` as not ready, with the error.
    """
    while True:
        try:
            await work()
        except* SlowStatementError as group:
            _log.warning("a statement took too long; restarting", part=part, error=str(group.exceptions[0]))
        except* _AWAY as group:
            error = group.exceptions[0]
            _log.warning("Kafka or Postgres is unavailable", part=part, error=f"{type(error).__name__}: {error}")
            health.not_ready(part, f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.5)


async def _deliver(settings: Settings, links: Links, extend: Extend, health: Health) -> None:
    await wait_until_bound(settings, health)
    await topics.wait_until_valid(settings, health)
    async with Producer(settings, compression="zstd") as producer:
        consumer = deliveries_consumer(settings)
        try:
            await consumer.start()
            health.ready("deliveries")
            await Deliveries(links, extend, producer).consume(consumer)
        finally:
            await consumer.stop()


async def _lead(settings: Settings, extend: Extend, health: Health) -> None:
    """Wait until this process is the leader. Then poll, sweep and trim as long as it is the leader.

    The leader is the process that holds an advisory lock in Postgres. While a process waits to become the leader, its
    part ``polling`` counts as ready.
    """
    await wait_until_bound(settings, health)
    await topics.wait_until_valid(settings, health)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await open_pool(settings, name="reconciler", max_size=6))
        producer = await stack.enter_async_context(Producer(settings, compression="zstd"))
        lock_connection = await stack.enter_async_context(pool.acquire())
        lists = RunLists(extend)
        fetcher = RunFetcher(pool, extend, producer, first_wait=settings.sweep_in_doubt_every)
        polling = Polling(settings, pool, lists, fetcher)
        sweeps = Sweeps(settings, pool, lists, fetcher, polling.hurry)
        trimming = Trimming(settings, pool, producer)
        every = min(1.0, settings.poll_every / 2, settings.sweep_in_doubt_every / 2)
        while not await lock_connection.fetchval(_sql["lead"]):
            health.ready("polling")
            await asyncio.sleep(1.0)

        async def repeat(step: Callable[[], Awaitable[None]]) -> None:
            while True:
                try:
                    await step()
                except* SlowStatementError as group:
                    # Retry only this step. The other steps are tasks of their own, and continue.
                    _log.warning("a statement took too long; retrying", error=str(group.exceptions[0]))
                health.ready("polling")
                await asyncio.sleep(every)

        async def still_leading() -> None:
            # Postgres releases the lock when the connection that holds it ends. Another process may then become the
            # leader. If the connection is lost, this query fails, and that ends the work of this process.
            while True:
                await lock_connection.fetchval("select 1")
                await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as group:
            group.create_task(repeat(polling.poll_due))
            group.create_task(repeat(sweeps.sweep_due))
            group.create_task(repeat(trimming.trim_due))
            group.create_task(still_leading())


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # The reconciler has no callers to serve, so it counts as ready only if all of its parts work.
    health = Health(PART, "topics", "kafka", "database", "deliveries", "polling")
    registry = CollectorRegistry()
    links = Links(
        settings.signed_url_origins, max_bytes=settings.signed_url_max_bytes, timeout=settings.signed_url_timeout
    )
    async with (
        http_server(
            settings.reconciler_listen, with_health(health, None, registry), drain=1.0, keep_alive=settings.keep_alive
        ),
        Extend(settings, budget=shared(settings)) as extend,
    ):
        count_requests(registry, extend.sent)
        tasks = [
            asyncio.create_task(_keep_running(health, "deliveries", lambda: _deliver(settings, links, extend, health))),
            asyncio.create_task(_keep_running(health, "polling", lambda: _lead(settings, extend, health))),
            # These two checks run beside the work, because the work may wait minutes for a server that hangs.
            asyncio.create_task(topics.keep_checking(settings, health)),
            asyncio.create_task(keep_probing(settings, health, "database", name="reconciler")),
        ]
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_STOP_WITHIN)
        stopped.cancel()
        await links.aclose()
        for ended in done:
            # If the task failed, this raises its error. That ends the process, so that it is restarted.
            ended.result()


def main() -> None:
    """Run the reconciler until SIGTERM or SIGINT."""
    run_service("reconciler", ("kafka_bootstrap", "postgres_dsn", "extend_api_key"), _main)
