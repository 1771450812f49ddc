"""Fill tables that lag behind the acknowledged offsets, because the database was restored, emptied or replaced."""

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

#: Seconds between two comparisons of the tables with the acknowledged offsets.
_EVERY = 5.0
#: If the log seems to end before the applied offsets, it is checked again after this many seconds.
_CONFIRM_AFTER = 1.0


async def recreate_schema(settings: Settings) -> None:
    """Run the migrations of the schema ``everyrun``, which was dropped.

    Any number of workers may call this at once: dbmate takes a lock, and does nothing if the schema exists. Raises
    everyrun.store.migrate.MigrationError.
    """
    _log.warning("the schema was dropped; recreating it", schema=SCHEMA)
    await asyncio.to_thread(migrate, settings.postgres_dsn.get_secret_value(), {SCHEMA: SCHEMAS[SCHEMA]})


class Worker(Protocol):
    """The part of the processor that the backfill uses."""

    acknowledged: dict[Partition, int]

    def give_up(self, why: str) -> None:
        """End the process."""


class Backfill:
    """Compares the tables with the acknowledged offsets, and applies the missing records. Publishes nothing."""

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
        """Return once it is certain that the tables were made from this log, or once ``stop`` is set.

        Until then, report in readyz what is wrong. Also restores the group's offsets if Kafka has expired them. No
        record may be read before this method returns, because records of another log would look like records that were
        already applied.
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
        """Read the offsets that the group has committed. The tables must reach them before new records are applied.

        Call this at each assignment. If Kafka was replaced while this process was running, the group is recreated and
        its partitions are assigned again. So this method also checks whether Kafka was replaced. If so, it ends the
        process.
        """
        identity = await topics.identity(self._settings)
        if identity != self._identity:
            self._worker.give_up(f"Kafka was replaced, or its topics changed: {identity} was {self._identity}")
        committed = await self.published.committed()
        try:
            ends = await end_offsets(self._settings, INPUTS)
        except UnknownTopicOrPartitionError:
            # A topic was deleted, so none of its records can be acknowledged. Once the topic exists again, its
            # partitions are assigned again, and this method is called again.
            return
        # A committed offset beyond the end of its partition was committed before the topic was recreated. Leave it out,
        # because the tables could never reach it.
        of_this_log = {p: offset for p, offset in committed.items() if offset <= ends.get(p, -1)}
        self._worker.acknowledged = greatest(self._worker.acknowledged, of_this_log)

    async def run(self) -> None:
        """Call ``fill`` every few seconds, for ever. If Kafka or the database is unavailable, report that in readyz."""
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
        """Apply the missing records before the acknowledged offsets. Meanwhile, the worker is not ready."""
        # Copy the offsets before reading the tables. Otherwise, a record that is applied and acknowledged after the
        # tables are read, and before the offsets are copied, would look like a missing one.
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
        """Return each partition's next offset. Raises ForeignLogError if the tables are not made from this log."""
        async with self._pool.acquire() as connection:
            applied = await offsets.applied_offsets(cast(asyncpg.Connection, connection), self._identity)
        try:
            offsets.refuse_ahead(applied, await end_offsets(self._settings, INPUTS))
        except ForeignLogError:
            # Look again: a broker that has just restarted may return an older end for a moment.
            await asyncio.sleep(_CONFIRM_AFTER)
            offsets.refuse_ahead(applied, await end_offsets(self._settings, INPUTS))
        return applied


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()
