"""How far everything is published, kept in Postgres too: Kafka forgets the offsets of a group that is down for long."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError

from everyrun.log.connection import connection
from everyrun.projection.offsets import Position
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "published_offsets.sql")
#: What Kafka answers to a commit from outside of a group that has members.
_HAS_MEMBERS = (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError)
#: The table is not there: the schema of the queue was dropped, or is being made.
_NO_TABLE = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)


class Published:
    """The copy of the group's offsets in ``everyrun_queue.published_offsets``."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> None:
        self._settings = settings
        self._pool = pool
        self._cluster_id = cluster_id
        self._kept: dict[Position, int] = {}

    async def keep(self, acknowledged: Mapping[Position, int]) -> None:
        """Keep how far the group has come, where that is news. Raises asyncpg's errors."""
        news = {place: offset for place, offset in acknowledged.items() if self._kept.get(place) != offset}
        if not news:
            return
        places = sorted(news)
        columns = [place[0] for place in places], [place[1] for place in places], [news[place] for place in places]
        try:
            await self._pool.execute(_sql["keep"], *columns, self._cluster_id)
        except _NO_TABLE as error:
            _log.warning("how far is published is not kept", error=str(error))
            return
        self._kept |= news

    async def restore(self) -> dict[Position, int]:
        """Give the group an offset for each partition that Kafka has none for, and return these offsets.

        It is what was kept, but no further than the tables are applied. Call it before the group is joined: Kafka
        forgets offsets only of a group without members, so one with members lacks none. Raises asyncpg's errors and
        aiokafka.errors.KafkaError.
        """
        group = self._settings.topic_prefix + "processor"
        admin = AIOKafkaAdminClient(**connection(self._settings))
        await admin.start()
        try:
            committed = await admin.list_consumer_group_offsets(group)
        finally:
            await admin.close()
        try:
            rows = await self._pool.fetch(_sql["kept"], self._cluster_id)
        except _NO_TABLE:
            return {}
        missing = {}
        for row in rows:
            part = TopicPartition(self._settings.topic(row["topic"]), row["partition"])
            if row["next_offset"] > 0 and (part not in committed or committed[part].offset < 0):
                missing[part] = row["next_offset"]
        if not missing:
            return {}
        consumer = AIOKafkaConsumer(**connection(self._settings), group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(missing))
            await consumer.commit(missing)
        except _HAS_MEMBERS as error:
            _log.info("another worker has joined the group meanwhile", reason=str(error))
            return {}
        finally:
            await consumer.stop()
        _log.warning("Kafka has forgotten the group's offsets; they were kept", partitions=len(missing))
        prefix = self._settings.topic_prefix
        return {(part.topic.removeprefix(prefix), part.partition): offset for part, offset in missing.items()}
