"""The processor's process: Faust reads the log, the projection takes it in, the state is published, Faust commits."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import asyncpg
import faust

from everyrun.failpoints import hit
from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.connection import tls
from everyrun.log.producer import Producer
from everyrun.memory import collect_seldom
from everyrun.processor.backfill import INPUTS, Healer
from everyrun.processor.commits import Transport
from everyrun.processor.fetching import MAX_RECORDS
from everyrun.processor.metrics import Metrics
from everyrun.processor.polls import WholePolls, joined, transactions
from everyrun.processor.publisher import Publisher
from everyrun.processor.stall_watchdog import Watch
from everyrun.projection import tables
from everyrun.projection.apply import Applied
from everyrun.projection.feed import Feed
from everyrun.projection.offsets import ForeignLogError, Position, greatest
from everyrun.projection.schema import remake
from everyrun.redact import describe
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, open_pool
from everyrun.telemetry import log

_log = log(__name__)

#: Polls taken into one transaction at most, and how long to wait for more, in seconds.
_POLLS, _WITHIN = 8, 0.01
#: Bytes of values in one transaction at most; a poll that is larger is one by itself.
_BYTES = 16 << 20
#: Transactions whose state is still being published.
_UNPUBLISHED = 2
_STOP_WITHIN = 6.0


def _credentials(settings: Settings) -> Any:
    context = tls(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password.get_secret_value(),
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def faust_app(settings: Settings) -> faust.App:
    """Faust set up so that a killed worker's partitions move within seconds (the defaults stall for minutes)."""
    app = faust.App(
        settings.topic_prefix + "processor",
        broker=["kafka://" + broker for broker in settings.kafka_bootstrap.split(",")],
        broker_credentials=_credentials(settings),
        store="memory://",
        # Faust makes a folder for tables, of which there are none.
        datadir=str(settings.data_dir / "faust"),
        web_enabled=False,
        # There are no tables; but only with standbys does Faust use its own assignor, which gives partition p of
        # batches and of runs to one worker. Round robin would not.
        table_standby_replicas=1,
        topic_disable_leader=True,
        topic_allow_declare=False,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4 << 20,
        stream_buffer_maxsize=16,
        stream_wait_empty=False,
        broker_session_timeout=10,
        broker_heartbeat_interval=2,
        broker_rebalance_timeout=20,
        broker_request_timeout=30,
        broker_commit_interval=1,
        # Else a reading has all records that were fetched: of a log that compresses well, hundreds of megabytes.
        broker_max_poll_records=MAX_RECORDS,
        ConsumerScheduler=WholePolls,
        loghandlers=[],
    )
    app.transport = Transport(app.conf.broker_consumer, app)
    return app


class Processor:
    """Carries polls from Faust into the tables and acknowledges them in order, after commit and publishing."""

    def __init__(self, settings: Settings, feed: Feed, publisher: Publisher, health: Health) -> None:
        self._settings = settings
        self._feed = feed
        self._publisher = publisher
        self._health = health
        self._finishing: deque[asyncio.Task[None]] = deque()
        #: How far the group has come: of our own partitions now, of the others when they were last assigned.
        self.acknowledged: dict[Position, int] = {}
        #: Whether that is known of the partitions as they are assigned now. Faust tells of an assignment and fetches
        #: at the same time, and what comes first must not be joined with tables that are behind.
        self.informed = asyncio.Event()

    async def agent(self, stream: Any) -> None:
        """The Faust agent. Ends the process on an error it has no answer to: Faust would commit what failed."""
        try:
            async for taken in stream.noack_take(_POLLS, within=_WITHIN):
                for events in transactions(taken, _BYTES):
                    await self._take(events)
        except ForeignLogError as error:
            self.give_up(str(error))
        except Exception:
            _log.exception("the agent failed")
            self.give_up("the agent failed; see the log")

    async def _take(self, events: list[Any]) -> None:
        """Apply in one transaction; publishing goes on beside what comes next."""
        while len(self._finishing) >= _UNPUBLISHED:
            await self._finishing.popleft()
        polls = joined((event.value for event in events), self._settings.topic_prefix)
        await self.informed.wait()
        applied = await self._feed.apply(polls, lambda: self.acknowledged)
        before = self._finishing[-1] if self._finishing else None
        ends = {(poll.topic, poll.partition): poll.end for poll in polls}
        self._finishing.append(asyncio.create_task(self._finish(before, applied, events, ends)))

    async def _finish(
        self,
        before: asyncio.Task[None] | None,
        applied: list[Applied],
        events: list[Any],
        ends: dict[Position, int],
    ) -> None:
        """Publish, then acknowledge, after everything taken before has been."""
        try:
            if before is not None:
                await before
            hit("processor.before_publish")
            needed = greatest(self.acknowledged, ends)
            await self._publisher.publish(applied, needed)
            hit("processor.before_ack")
            for event in events:
                event.ack()
            hit("processor.after_ack")
            self.acknowledged = greatest(self.acknowledged, ends)
        except Exception:
            _log.exception("publishing failed")
            self.give_up("publishing failed; see the log")

    def give_up(self, why: str) -> None:
        """End the process, so that it is started anew: what is not acknowledged is read again."""
        _log.error("ending this process", reason=why)
        self._health.fail(why)
        os._exit(1)


async def until_ended(stop: asyncio.Event, standing: Mapping[str, Coroutine[Any, Any, Any]]) -> str | None:
    """Run what stands for ever, each under its name, until ``stop`` is set; all are cancelled at the end.

    Returns None then; where one of them ends before, which it never should, which one and why: without it the process
    would go on half blind.
    """
    stopping = asyncio.create_task(stop.wait())
    tasks = {asyncio.create_task(work): name for name, work in standing.items()}
    try:
        done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (stopping, *tasks):
            task.cancel()
    if stop.is_set():
        return None
    task = next(task for task in done if task in tasks)
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("an error without an answer", task=tasks[task], exc_info=error)
    return f"{tasks[task]} ended by itself" + (f": {describe(error)}" if error is not None else "")


def inform(app: faust.App, healer: Healer, processor: Processor, health: Health) -> None:
    """Have the processor know at each assignment how far the group has come, before it applies anything."""

    async def on_assigned(_app: Any, *_arguments: Any, **_: Any) -> None:
        await healer.assigned()
        processor.informed.set()
        health.ready("partitions")

    async def on_revoked(_app: Any, *_arguments: Any, **_: Any) -> None:
        processor.informed.clear()

    app.on_partitions_assigned.connect(on_assigned, weak=False)  # type: ignore[arg-type]
    app.on_partitions_revoked.connect(on_revoked, weak=False)  # type: ignore[arg-type]


async def _pool(settings: Settings, health: Health, stop: asyncio.Event) -> asyncpg.Pool | None:
    """Connections to the tables, once the database answers; None where ``stop`` is set before."""
    while not stop.is_set():
        try:
            return await open_pool(
                settings,
                name="processor",
                min_size=2,
                max_size=6,
                command_timeout=120,
                own={"search_path": tables.SCHEMA},
                setup=tables.setup_connection,
            )
        except POSTGRES_AWAY as error:
            health.not_ready("database", describe(error))
            await asyncio.sleep(0.5)
    return None


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # Nobody calls it. What is asked of it is to bring the log into the tables: it needs both.
    health, metrics = Health("kafka", "database", "topics", "tables", "partitions"), Metrics()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            http_server(
                settings.processor_listen, with_health(health, None, metrics.registry), keep_alive=settings.keep_alive
            )
        )
        await topics.wait_until_right(settings, health)
        identity = await topics.identity(settings)
        opened = await _pool(settings, health, stop)
        if opened is None:
            return
        pool = await stack.enter_async_context(opened)
        producer = await stack.enter_async_context(Producer(settings, linger_ms=5, compression="zstd"))
        feed = Feed(settings, pool, identity, producer, health, partial(remake, settings))
        processor = Processor(settings, feed, Publisher(pool, identity, producer, feed), health)
        healer = Healer(settings, pool, identity, feed, processor, health)
        await healer.until_ours(stop)
        if stop.is_set():
            return
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        app = faust_app(settings)
        app.agent(app.topic(*(settings.topic(name) for name in INPUTS), value_serializer="raw"), name="projection")(
            processor.agent
        )

        inform(app, healer, processor, health)
        await app.start()
        watch = Watch(
            settings,
            metrics,
            health,
            feed,
            lambda: {(tp.topic.removeprefix(settings.topic_prefix), tp.partition) for tp in app.consumer.assignment()},
            lambda: processor.acknowledged,
            processor.give_up,
        )
        ended = await until_ended(
            stop,
            {
                "Faust": app.wait_until_stopped(),
                "healing": healer.run(),
                "the watch": watch.run(INPUTS),
                "looking at the topics": topics.keep_looking(settings, health),
            },
        )
        if ended is not None:
            crash = f": {app.crash_reason}" if app.crash_reason else ""
            processor.give_up(ended + crash)
        # A worker that waits for its agent can hang; what is not acknowledged is read again by the next.
        try:
            await asyncio.wait_for(app.stop(), _STOP_WITHIN)
        except TimeoutError:
            _log.warning("Faust did not stop in time")
        os._exit(0)


def main() -> None:
    """Run the processor until SIGTERM or SIGINT."""
    collect_seldom()
    run_service("processor", ("kafka_bootstrap", "postgres_dsn"), _main)
