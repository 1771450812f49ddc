"""Tables that are behind what was acknowledged (a restored, emptied or replaced database) are brought up to it."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.connection import connection
from everyrun.log.reader import end_offsets
from everyrun.processor.published_offsets import Published
from everyrun.projection import offsets
from everyrun.projection.feed import AWAY, Feed
from everyrun.projection.offsets import ForeignLogError, Position, greatest
from everyrun.settings import Settings
from everyrun.telemetry import log

_log = log(__name__)

#: The topics that the tables are made of.
INPUTS = ("batches", "runs", "deliveries", "quarantine")
#: How often the tables are compared with what was acknowledged, in seconds.
_EVERY = 2.0
#: Before a log that ends too early is believed, it is asked again after this long, in seconds.
_AGAIN_AFTER = 1.0


class Worker(Protocol):
    """What the healer needs of the processor: what it acknowledged, and its end."""

    acknowledged: dict[Position, int]

    def give_up(self, why: str) -> None:
        """End the process."""


class Healer:
    """Compares the tables with what was acknowledged, and fills them from the log. It publishes nothing."""

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        identity: topics.LogIdentity,
        feed: Feed,
        worker: Worker,
        health: Health,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._identity = identity
        self._feed = feed
        self._worker = worker
        self._health = health
        self.published = Published(settings, pool, identity.cluster_id)

    async def until_ours(self, stop: asyncio.Event) -> None:
        """Return when the tables are this log's, or ``stop`` is set; say in readyz and the log that they are not.

        By then the group has its offsets back, if Kafka forgot them. Nothing is read meanwhile: records of another log
        would pass for those that were applied already.
        """
        while not stop.is_set():
            try:
                await self._applied_of_this_log()
                await self.published.restore()
                self._health.ready("kafka")
                self._health.ready("database")
                return
            except ForeignLogError as error:
                self._health.not_ready("kafka", str(error))
                _log.error("refusing this Kafka", reason=str(error))
            except KafkaError as error:
                self._health.not_ready("kafka", f"{type(error).__name__}: {error}")
            except AWAY as error:
                await self._feed.mend(error)
            await _sleep(stop, _EVERY)

    async def assigned(self) -> None:
        """Learn how far the group has come: what it acknowledged must be in the tables before anything more is.

        A Kafka that was replaced makes the group anew, so this is where it is noticed: the process ends.
        """
        identity = await topics.identity(self._settings)
        if identity != self._identity:
            self._worker.give_up(f"Kafka was replaced, or its topics changed: {identity} was {self._identity}")
        admin = AIOKafkaAdminClient(**connection(self._settings))
        await admin.start()
        try:
            committed = await admin.list_consumer_group_offsets(self._settings.topic_prefix + "processor")
        finally:
            await admin.close()
        prefix = self._settings.topic_prefix
        known = {(tp.topic.removeprefix(prefix), tp.partition): meta.offset for tp, meta in committed.items()}
        try:
            ends = await end_offsets(self._settings, INPUTS)
        except UnknownTopicOrPartitionError:
            # There is nothing to be acknowledged of a topic that is gone; once it is back, it is assigned anew.
            return
        # What a worker acknowledged of a topic that was made anew since is nothing of this one, and never comes.
        of_this_log = {place: offset for place, offset in known.items() if offset <= ends.get(place, -1)}
        self._worker.acknowledged = greatest(self._worker.acknowledged, of_this_log)

    async def run(self) -> None:
        """Compare every now and then, for ever."""
        while True:
            try:
                await self.heal()
            except ForeignLogError as error:
                self._worker.give_up(str(error))
            except KafkaError as error:
                self._health.not_ready("kafka", f"{type(error).__name__}: {error}")
            except AWAY as error:
                await self._feed.mend(error)
            await asyncio.sleep(_EVERY)

    async def heal(self) -> None:
        """Fill what is missing below the acknowledged offsets; not ready meanwhile."""
        # Read first: what is acknowledged meanwhile may be applied after the tables were asked.
        acknowledged = dict(self._worker.acknowledged)
        gaps = offsets.behind(await self._applied_of_this_log(), acknowledged)
        self._health.ready("database")
        if gaps:
            count = sum(end - start for start, end in gaps.values())
            self._health.not_ready("tables", f"{count} records behind; filling them in")
            await self._feed.fill(gaps)
        self._health.ready("tables")
        await self.published.keep(acknowledged)

    async def _applied_of_this_log(self) -> dict[Position, int]:
        """How far each partition is applied. Raises ForeignLogError where that cannot be of this log."""
        async with self._pool.acquire() as connection:
            applied = await offsets.positions(cast(asyncpg.Connection, connection), self._identity)
        try:
            offsets.refuse_ahead(applied, await end_offsets(self._settings, INPUTS))
        except ForeignLogError:
            # A broker that has just come back may know an older end for a moment.
            await asyncio.sleep(_AGAIN_AFTER)
            offsets.refuse_ahead(applied, await end_offsets(self._settings, INPUTS))
        return applied


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()
