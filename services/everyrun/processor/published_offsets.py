"""Keep a copy of the consumer group's offsets in Postgres, because Kafka deletes them if no worker runs for long."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError

from everyrun.log.connection import connection
from everyrun.log.reading import Partition
from everyrun.projection.feed import SCHEMA_GONE
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "published_offsets.sql")
#: Errors by which Kafka refuses a commit from outside the group while the group has members.
_HAS_MEMBERS = (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError)


class PublishedOffsets:
    """The consumer group's offsets, in Kafka and as a copy in ``everyrun_queue.published_offsets``."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> None:
        self._settings = settings
        self._pool = pool
        self._cluster_id = cluster_id
        self._group = settings.topic_prefix + "processor"
        self._kept: dict[Partition, int] = {}

    async def committed(self) -> dict[Partition, int]:
        """Return the offsets that Kafka has for the group. Raises aiokafka.errors.KafkaError."""
        admin = AIOKafkaAdminClient(**connection(self._settings))
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(self._group)
        finally:
            await admin.close()
        prefix = self._settings.topic_prefix
        return {(part.topic.removeprefix(prefix), part.partition): meta.offset for part, meta in offsets.items()}

    async def keep(self, acknowledged: Mapping[Partition, int]) -> None:
        """Copy to Postgres the offsets that have changed since the last copy. Raises asyncpg's errors."""
        changed = {p: offset for p, offset in acknowledged.items() if self._kept.get(p) != offset}
        if not changed:
            return
        topics, numbers = [topic for topic, _ in changed], [number for _, number in changed]
        try:
            await self._pool.execute(_sql["keep"], topics, numbers, list(changed.values()), self._cluster_id)
        except SCHEMA_GONE as error:
            # The queue's schema was dropped, or is being created.
            _log.warning("the group's offsets could not be copied to Postgres", error=str(error))
            return
        self._kept |= changed

    async def restore(self) -> dict[Partition, int]:
        """For each partition whose offset Kafka has lost, commit the copied offset. Return the committed offsets.

        An offset beyond the records that are applied to the tables is never committed. Call this before joining the
        group. If the group has members, nothing is restored. That is not necessary then, because Kafka expires only
        offsets of a group without members. Raises asyncpg's errors and aiokafka.errors.KafkaError.
        """
        committed = await self.committed()
        try:
            rows = await self._pool.fetch(_sql["kept"], self._cluster_id)
        except SCHEMA_GONE:
            return {}
        lost = {
            (row["topic"], row["partition"]): row["next_offset"]
            for row in rows
            if row["next_offset"] > 0 and committed.get((row["topic"], row["partition"]), -1) < 0
        }
        if not lost:
            return {}
        parts = {TopicPartition(self._settings.topic(topic), number): lost[topic, number] for topic, number in lost}
        consumer = AIOKafkaConsumer(**connection(self._settings), group_id=self._group, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(parts))
            await consumer.commit(parts)
        except _HAS_MEMBERS as error:
            _log.info("another worker joined the group first", reason=str(error))
            return {}
        finally:
            await consumer.stop()
        _log.warning("Kafka had expired the group's offsets; restored them from Postgres", partitions=len(lost))
        return lost
