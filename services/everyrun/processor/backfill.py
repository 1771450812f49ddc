"""Backfill tables that lag behind what was acknowledged, because the database was restored, emptied or replaced."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import asyncpg
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.reading import Partition, end_offsets
from everyrun.processor.published_offsets import PublishedOffsets
from everyrun.projection import offsets
from everyrun.projection.feed import UNAVAILABLE, Feed
from everyrun.projection.offsets import INPUTS, ForeignLogError, greatest
from everyrun.projection.tables import SCHEMA
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS, migrate
from everyrun.telemetry import log

_log = log(__name__)

#: Seconds between two comparisons of the tables with what was acknowledged.
_EVERY = 2.0
#: Seconds until the second look at a log that seems to end too early.
_CONFIRM_AFTER = 1.0


async def recreate_schema(settings: Settings) -> None:
    """Run the migrations of the schema ``everyrun``, which was dropped. Safe to call from any number of workers.

    dbmate takes a lock; nothing happens if the schema exists. Raises everyrun.store.migrate.MigrationError.
    """
    _log.warning("the schema was dropped; recreating it", schema=SCHEMA)
    await asyncio.to_thread(migrate, settings.postgres_dsn.get_secret_value(), {SCHEMA: SCHEMAS[SCHEMA]})


class Worker(Protocol):
    """The part of the processor that the backfill uses."""

    acknowledged: dict[Partition, int]

    def give_up(self, why: str) -> None:
        """End the process."""


class Backfill:
    """Compares the tables with what was acknowledged, and fills them from the log. Publishes nothing."""

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
        self.published = PublishedOffsets(settings, pool, identity.cluster_id)

    async def wait_for_own_log(self, stop: asyncio.Event) -> None:
        """Return once the tables come from this log, or ``stop`` is set; report in readyz if they do not.

        Also restores the group's offsets, if Kafka expired them. Nothing may be read before this returns: records of
        another log would look like records that were applied already.
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
            except UNAVAILABLE as error:
                await self._feed.report_unavailable(error)
            await _sleep(stop, _EVERY)

    async def load_group_offsets(self) -> None:
        """Read how far the group has committed. The tables must hold that before anything more is applied.

        Call it at each assignment: a replaced Kafka recreates the group, so this is where a replacement shows. It ends
        the process.
        """
        identity = await topics.identity(self._settings)
        if identity != self._identity:
            self._worker.give_up(f"Kafka was replaced, or its topics changed: {identity} was {self._identity}")
        committed = await self.published.committed()
        try:
            ends = await end_offsets(self._settings, INPUTS)
        except UnknownTopicOrPartitionError:
            # Nothing is acknowledged of a topic that was deleted. Once it exists again, it is assigned again.
            return
        # Offsets beyond the end belong to a topic that was recreated since; they never come.
        of_this_log = {p: offset for p, offset in committed.items() if offset <= ends.get(p, -1)}
        self._worker.acknowledged = greatest(self._worker.acknowledged, of_this_log)

    async def run(self) -> None:
        """Compare and fill every few seconds, for ever."""
        while True:
            try:
                await self.fill()
            except ForeignLogError as error:
                self._worker.give_up(str(error))
            except KafkaError as error:
                self._health.not_ready("kafka", f"{type(error).__name__}: {error}")
            except UNAVAILABLE as error:
                await self._feed.report_unavailable(error)
            await asyncio.sleep(_EVERY)

    async def fill(self) -> None:
        """Fill what is missing below the acknowledged offsets. The worker is not ready meanwhile."""
        # Copy first: what is acknowledged after the tables were read may be applied after that, too.
        acknowledged = dict(self._worker.acknowledged)
        gaps = offsets.missing(await self._applied_of_this_log(), acknowledged)
        self._health.ready("database")
        if gaps:
            count = sum(end - start for start, end in gaps.values())
            self._health.not_ready("tables", f"{count} records behind; filling them in")
            await self._feed.fill(gaps)
        self._health.ready("tables")
        await self.published.keep(acknowledged)

    async def _applied_of_this_log(self) -> dict[Partition, int]:
        """Return how far each partition is applied. Raises ForeignLogError if the tables cannot be of this log."""
        async with self._pool.acquire() as connection:
            applied = await offsets.applied_offsets(cast(asyncpg.Connection, connection), self._identity)
        try:
            offsets.refuse_ahead(applied, await end_offsets(self._settings, INPUTS))
        except ForeignLogError:
            # A broker that has just restarted may return an older end for a moment.
            await asyncio.sleep(_CONFIRM_AFTER)
            offsets.refuse_ahead(applied, await end_offsets(self._settings, INPUTS))
        return applied


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()
