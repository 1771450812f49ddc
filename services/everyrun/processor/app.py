"""Run the processor: Faust reads the log, the projection applies it, the publisher publishes results, Faust commits."""

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
from everyrun.log.batching import group_by_weight, join_polls, size_of
from everyrun.log.producer import Producer
from everyrun.log.reading import Partition, Poll
from everyrun.memory import reduce_garbage_collection
from everyrun.processor.backfill import Backfill, recreate_schema
from everyrun.processor.faust_adapter import faust_app, sleep_until_arrival
from everyrun.processor.metrics import Metrics
from everyrun.processor.publisher import Publisher
from everyrun.processor.stall_watchdog import StallWatchdog
from everyrun.projection import tables
from everyrun.projection.apply import Applied
from everyrun.projection.feed import Feed
from everyrun.projection.offsets import INPUTS, ForeignLogError, greatest
from everyrun.redact import describe
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, open_pool
from everyrun.telemetry import log

_log = log(__name__)

#: Maximum number of polls in one transaction. How long to wait for more polls after the first, in seconds.
_POLLS, _WITHIN = 8, 0.01
#: Maximum number of bytes of record values in one transaction. A larger poll is applied alone.
_BYTES = 16 << 20
#: Maximum number of committed transactions whose results are still being published.
_UNPUBLISHED = 2
#: Faust must stop within this many seconds.
_STOP_WITHIN = 6.0


class Processor:
    """Applies polls from Faust to the tables, and acknowledges them in order after their results are published."""

    def __init__(self, settings: Settings, feed: Feed, publisher: Publisher, health: Health) -> None:
        self._prefix = settings.topic_prefix
        self._feed = feed
        self._publisher = publisher
        self._health = health
        self._finishing: deque[asyncio.Task[None]] = deque()
        #: The offset up to which the consumer group has acknowledged each partition. For partitions of other workers,
        #: these are the offsets at the time of the last assignment.
        self.acknowledged: dict[Partition, int] = {}
        #: Set after ``acknowledged`` is loaded for the current assignment. Records that Faust fetches before that must
        #: wait, because the tables may lag behind the acknowledged offsets.
        self.offsets_loaded = asyncio.Event()

    async def agent(self, stream: Any) -> None:
        """Run the Faust agent. End the process after an unexpected error, so that Faust commits no failed records."""
        sleep_until_arrival(stream)
        try:
            async for fetched in stream.noack_take(_POLLS, within=_WITHIN):
                for events in group_by_weight(fetched, lambda event: size_of(event.value), _BYTES):
                    await self._process(events)
        except ForeignLogError as error:
            self.give_up(str(error))
        except Exception:
            _log.exception("the agent failed")
            self.give_up("the agent failed; see the log")

    async def _process(self, events: list[Any]) -> None:
        """Apply the events in one transaction. Their results are published while the next transaction runs."""
        while len(self._finishing) >= _UNPUBLISHED:
            await self._finishing.popleft()
        polls = join_polls(
            Poll(event.value[0].topic.removeprefix(self._prefix), event.value[0].partition, event.value)
            for event in events
        )
        await self.offsets_loaded.wait()
        applied = await self._feed.apply(polls, lambda: self.acknowledged)
        before = self._finishing[-1] if self._finishing else None
        ends = {(poll.topic, poll.partition): poll.end for poll in polls}
        self._finishing.append(asyncio.create_task(self._finish(before, applied, events, ends)))

    async def _finish(
        self,
        before: asyncio.Task[None] | None,
        applied: list[Applied],
        events: list[Any],
        ends: dict[Partition, int],
    ) -> None:
        """Wait for ``before``, which does this for the previous transaction. Then publish results and acknowledge."""
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
        """End the process. After its restart, the processor continues at the first record that is not acknowledged."""
        _log.error("ending this process", reason=why)
        self._health.fail(why)
        os._exit(1)


async def until_ended(stop: asyncio.Event, tasks: Mapping[str, Coroutine[Any, Any, Any]]) -> str | None:
    """Run endless tasks, given by name, until ``stop`` is set. Then cancel all of them and return None.

    If a task ends before ``stop`` is set, cancel the others and return the name of that task and why it ended. The
    process cannot continue without that task.
    """
    stopping = asyncio.create_task(stop.wait())
    running = {asyncio.create_task(work): name for name, work in tasks.items()}
    try:
        done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (stopping, *running):
            task.cancel()
    if stop.is_set():
        return None
    task = next(task for task in done if task in running)
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("a task failed", task=running[task], exc_info=error)
    return f"{running[task]} ended by itself" + (f": {describe(error)}" if error is not None else "")


def load_offsets_when_assigned(app: faust.App, backfill: Backfill, processor: Processor, health: Health) -> None:
    """Load the group's offsets whenever partitions are assigned, before the processor applies any of their records."""

    async def on_assigned(_app: Any, *_arguments: Any, **_: Any) -> None:
        await backfill.load_group_offsets()
        processor.offsets_loaded.set()
        health.ready("partitions")

    async def on_revoked(_app: Any, *_arguments: Any, **_: Any) -> None:
        processor.offsets_loaded.clear()

    app.on_partitions_assigned.connect(on_assigned, weak=False)  # type: ignore[arg-type]
    app.on_partitions_revoked.connect(on_revoked, weak=False)  # type: ignore[arg-type]


async def _pool(settings: Settings, health: Health, stop: asyncio.Event) -> asyncpg.Pool | None:
    """Return a pool of connections to the tables once the database answers; None if ``stop`` is set first."""
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
    # The processor serves no requests. It is ready if Kafka and the database are available, so that it can work.
    health, metrics = Health("kafka", "database", "topics", "tables", "partitions"), Metrics()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            http_server(
                settings.processor_listen, with_health(health, None, metrics.registry), keep_alive=settings.keep_alive
            )
        )
        await topics.wait_until_valid(settings, health)
        identity = await topics.identity(settings)
        opened = await _pool(settings, health, stop)
        if opened is None:
            return
        pool = await stack.enter_async_context(opened)
        producer = await stack.enter_async_context(Producer(settings, linger_ms=5, compression="zstd"))
        feed = Feed(settings, pool, identity, producer, health, partial(recreate_schema, settings))
        processor = Processor(settings, feed, Publisher(pool, identity, producer, feed), health)
        backfill = Backfill(settings, pool, identity, feed, processor, health)
        await backfill.wait_for_own_log(stop)
        if stop.is_set():
            return
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        app = faust_app(settings)
        app.agent(app.topic(*(settings.topic(name) for name in INPUTS), value_serializer="raw"), name="projection")(
            processor.agent
        )

        load_offsets_when_assigned(app, backfill, processor, health)
        await app.start()
        watchdog = StallWatchdog(
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
                "the backfill": backfill.run(),
                "the stall watchdog": watchdog.run(INPUTS),
                "the check of the topics": topics.keep_checking(settings, health),
            },
        )
        if ended is not None:
            crash = f": {app.crash_reason}" if app.crash_reason else ""
            processor.give_up(ended + crash)
        # Faust may hang while it stops, because it waits for the agent. Ending the process is safe, because the next
        # worker continues at the first record that is not acknowledged.
        try:
            await asyncio.wait_for(app.stop(), _STOP_WITHIN)
        except TimeoutError:
            _log.warning("Faust did not stop in time")
        os._exit(0)


def main() -> None:
    """Run the processor until SIGTERM or SIGINT."""
    reduce_garbage_collection()
    run_service("processor", ("kafka_bootstrap", "postgres_dsn"), _main)
