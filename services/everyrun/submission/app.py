"""Run the submission service: wire its parts, serve the API, and run its periodic tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg
from fastapi import FastAPI

from everyrun.extend.budget import shared
from everyrun.extend.client import Extend
from everyrun.extend.forward import Forwarder
from everyrun.extend.installation_binding import PART, wait_until_bound
from everyrun.extend.metrics import count_requests
from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.producer import Log, Producer
from everyrun.serve import StartingApp, http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import is_slow
from everyrun.store.probe import keep_probing, open_pool_when_up
from everyrun.store.sql import beside
from everyrun.submission.announcer import Announcer, announce_tokens
from everyrun.submission.api.request_body import Uploads
from everyrun.submission.api.submissions import submission_api
from everyrun.submission.cancellations.job import CancellationJob
from everyrun.submission.decisions.doubts import Doubts
from everyrun.submission.dispatch.dispatcher import UNAVAILABLE, Dispatcher
from everyrun.submission.dispatch.object_links import ObjectLinks
from everyrun.submission.dispatch.resolver import Resolver
from everyrun.submission.dispatch.transitions import Transitions
from everyrun.submission.dropin.app import DropIn, StartingDropIn
from everyrun.submission.dropin.batches import Batches
from everyrun.submission.dropin.forwarding import Forwarding
from everyrun.submission.dropin.runs import Runs
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.metrics import Metrics
from everyrun.submission.recovery.queue_recovery import QueueRecovery
from everyrun.submission.redaction import redact_due
from everyrun.submission.retry.announce import announce_retries
from everyrun.submission.retry.rules import retry_by_rules, stop_by_rules
from everyrun.submission.settled_inputs import SettledInputs
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
#: How long a stopping service waits for its tasks to end, in seconds.
_STOP_WITHIN = 8.0


@dataclass(frozen=True)
class Service:
    """The parts of the submission service, connected to each other."""

    recovery: QueueRecovery
    transitions: Transitions
    dispatcher: Dispatcher
    resolver: Resolver
    doubts: Doubts
    cancellations: CancellationJob
    announcer: Announcer
    settled: SettledInputs
    uploads: Uploads
    workflows: Workflows
    api: FastAPI


def wire(settings: Settings, pool: asyncpg.Pool, extend: Extend, log: Log, installation: str) -> Service:
    """Return the parts of the service, connected to each other. A test can pass fakes for the arguments."""
    recovery = QueueRecovery(settings, pool)
    transitions = Transitions(settings, pool, log)
    links = ObjectLinks(settings.object_link_lifetime, settings.dispatch_deadline / 2)
    dispatcher = Dispatcher(settings, pool, extend, log, installation, recovery, transitions, links)
    doubts = Doubts(pool, extend, recovery, transitions, installation)
    announcer = Announcer(pool, log, dispatcher.wake)
    uploads, workflows, wake_canceller = Uploads(), Workflows(extend), asyncio.Event()
    return Service(
        recovery,
        transitions,
        dispatcher,
        Resolver(settings, pool, recovery, transitions, installation),
        doubts,
        CancellationJob(pool, extend, recovery, transitions, installation, wake_canceller),
        announcer,
        SettledInputs(settings, pool, dispatcher.wake),
        uploads,
        workflows,
        submission_api(
            settings,
            pool,
            announcer.wake,
            log,
            doubts,
            recovery,
            uploads,
            workflows,
            extend,
            links,
            wake_canceller,
        ),
    )


def wire_dropin(settings: Settings, pool: asyncpg.Pool, service: Service, forwarder: Forwarder, log: Log) -> DropIn:
    """Return the drop-in endpoint, connected to the parts of the service."""
    runs = Runs(pool)
    batches = Batches(settings, pool, service.recovery, service.workflows, service.announcer.wake)
    return DropIn(settings, pool, batches, runs, Forwarding(forwarder, runs, log, settings.upload_max_bytes))


async def run_periodically(
    task: Callable[[], Awaitable[object]], seconds: float, stop: asyncio.Event, wake: asyncio.Event | None = None
) -> None:
    """Run a task every ``seconds`` seconds, and whenever ``wake`` is set, until ``stop`` is set.

    If the task fails, the error is logged, and the task is tried again the next time.
    """
    while not stop.is_set():
        try:
            await task()
        except UNAVAILABLE as error:
            _log.warning("will retry", error=f"{type(error).__name__}: {error}")
        except Exception:
            _log.exception("will retry")
        waits = [asyncio.create_task(event.wait()) for event in (stop, wake) if event is not None]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if wake is not None:
            wake.clear()


async def _catch_up(recovery: QueueRecovery, health: Health) -> None:
    """Catch the queue up with the log. If that is not possible, show the reason in ``/readyz``."""
    try:
        await recovery.catch_up()
    except UNAVAILABLE as error:
        if not is_slow(error):
            health.not_ready("log_position", str(error) or type(error).__name__)
        raise
    health.ready("log_position")


async def _until_caught_up(recovery: QueueRecovery, health: Health) -> None:
    while True:
        try:
            return await _catch_up(recovery, health)
        except UNAVAILABLE as error:
            _log.warning("waiting to catch up with the log", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Without Kafka the running service still accepts submissions: Postgres keeps them until they can be announced and
    # sent. But a starting service needs Kafka, because a restored queue learns from the log what it lost.
    health = Health(PART, "database", at_start=("topics", "kafka", "log_position"))
    starting, metrics, dropin = StartingApp(health), Metrics(), StartingDropIn(health)
    async with AsyncExitStack() as server, AsyncExitStack() as stack:
        app = with_health(health, starting, metrics.registry)
        await server.enter_async_context(http_server(settings.submission_listen, app, keep_alive=settings.keep_alive))
        if settings.dropin_listen:
            await server.enter_async_context(
                http_server(settings.dropin_listen, dropin, keep_alive=settings.keep_alive)
            )
        # The API is served only after the binding is checked. Otherwise it could accept inputs that are meant for
        # another Extend.
        await wait_until_bound(settings, health)
        pool = await stack.enter_async_context(
            await open_pool_when_up(settings, health, name="submission", max_size=12)
        )
        extend = await stack.enter_async_context(Extend(settings, budget=shared(settings)))
        await topics.wait_until_valid(settings, health)
        producer = await stack.enter_async_context(Producer(settings, compression="zstd"))
        forwarder = await stack.enter_async_context(Forwarder(settings, extend))
        service = wire(settings, pool, extend, producer, await pool.fetchval(_sql["installation"]))
        count_requests(metrics.registry, extend.sent)
        metrics.add_uploads(service.uploads)
        # On exit, requests in progress end before the pool and the producer that they use are closed.
        stack.push_async_callback(server.aclose)
        starting.app = service.api
        dropin.app = wire_dropin(settings, pool, service, forwarder, producer)
        health.ready("database")
        await _until_caught_up(service.recovery, health)
        announcer = service.announcer

        async def announce() -> None:
            await announcer.announce()
            await announce_retries(pool, producer, service.dispatcher.wake)

        tasks = [
            asyncio.create_task(run_periodically(announce, 1.0, stop, announcer.wake)),
            asyncio.create_task(run_periodically(lambda: announce_tokens(pool, producer), 1.0, stop)),
            asyncio.create_task(run_periodically(service.dispatcher.look, 1.0, stop)),
            asyncio.create_task(run_periodically(service.settled.count, 1.0, stop)),
            asyncio.create_task(run_periodically(service.resolver.resolve, 1.0, stop)),
            asyncio.create_task(run_periodically(service.cancellations.work, 1.0, stop, service.cancellations.wake)),
            asyncio.create_task(run_periodically(lambda: _catch_up(service.recovery, health), 30.0, stop)),
            asyncio.create_task(run_periodically(lambda: retry_by_rules(pool, announcer.wake), 2.0, stop)),
            asyncio.create_task(run_periodically(lambda: stop_by_rules(pool, producer), 2.0, stop)),
            asyncio.create_task(run_periodically(lambda: redact_due(pool, producer, settings), 60.0, stop)),
            asyncio.create_task(run_periodically(lambda: metrics.update(pool), 15.0, stop)),
            *(asyncio.create_task(service.dispatcher.work(stop)) for _ in range(settings.dispatch_workers)),
        ]
        probes = [
            asyncio.create_task(topics.keep_checking(settings, health)),
            asyncio.create_task(keep_probing(settings, health, "database", name="submission")),
        ]
        await stop.wait()
        for task in probes:
            task.cancel()
        # Give calls in progress time to end. If a call does not end in time, its chunk stays `sending`, and a resolver
        # resolves it later.
        _, unfinished = await asyncio.wait(tasks, timeout=_STOP_WITHIN)
        for task in unfinished:
            task.cancel()


def main() -> None:
    """Run the submission service until SIGTERM or SIGINT."""
    run_service("submission", ("kafka_bootstrap", "postgres_dsn", "extend_api_key"), _main)
