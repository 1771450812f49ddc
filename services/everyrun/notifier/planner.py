"""Read the log, and store a delivery for each event and each receiver that gets it.

The deliveries of some records and the position after these records are stored in one transaction. So after a crash, no
event is missing, and none is stored twice. If two processes read the same records, both make the same ids, and the
second insert does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, RebalanceInProgressError
from msgspec import Struct

from everyrun.errors import EveryrunError
from everyrun.failpoints import hit
from everyrun.log.connection import connection
from everyrun.log.reading import LogRecord, Partition
from everyrun.log.topics import cluster_id
from everyrun.notifier.catalog import Format, is_wanted
from everyrun.notifier.notifications import TOPICS, Notification, notification_of
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "notifier.sql")
#: Maximum number of records in one transaction.
_AT_ONCE = 500


class OtherLogError(EveryrunError):
    """The receivers were added while another Kafka was used, so it is unknown which records they should get."""


class Subscriber(Struct, frozen=True):
    """The subscription of a receiver. ``starts`` holds the first offset of each partition that the receiver gets."""

    receiver_id: str
    format: Format
    events: Sequence[str]
    workflows: Sequence[str]
    starts: Mapping[Partition, int]


class Delivery(NamedTuple):
    """A notification that a receiver gets."""

    receiver_id: str
    notification_id: str


class Plan(NamedTuple):
    """Holds the notifications and deliveries to store for some records."""

    notifications: dict[str, Notification]
    deliveries: list[Delivery]


def plan(records: Iterable[tuple[str, LogRecord]], subscribers: Sequence[Subscriber]) -> Plan:
    """Return the notifications that these receivers get for records, each given with its topic's short name. Pure."""
    found = Plan({}, [])
    for topic, record in records:
        notification = notification_of(topic, record)
        if notification is None:
            continue
        for one in subscribers:
            wanted = one.format == notification.format and is_wanted(
                notification.event, notification.workflow_id, one.events, one.workflows
            )
            if wanted and record.offset >= one.starts.get((topic, record.partition), 0):
                found.notifications.setdefault(notification.id, notification)
                found.deliveries.append(Delivery(one.receiver_id, notification.id))
    return found


def first_needed(partition: Partition, position: int, subscribers: Sequence[Subscriber]) -> int:
    """Return the offset at which reading continues: no receiver gets a record before it. Pure."""
    return max(position, min((one.starts.get(partition, 0) for one in subscribers), default=0))


class Planner(ConsumerRebalanceListener):  # type: ignore[misc]
    """Reads the topics with a consumer group. ``wake_sender`` is set when deliveries were stored."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, wake_sender: asyncio.Event) -> None:
        self._settings = settings
        self._pool = pool
        self._wake_sender = wake_sender
        self._names = {settings.topic(topic): topic for topic in TOPICS}
        self._consumer: Any = None
        self._cluster_id = ""

    async def has_subscribers(self) -> bool:
        """Return True if there is a receiver. Otherwise the log need not be read. Raises asyncpg's errors."""
        return bool(await self._pool.fetch(_sql["receivers"]))

    async def run(self, on_progress: Callable[[], None]) -> None:
        """Read and plan as long as there are receivers. Call ``on_progress`` after each successful step.

        Raises aiokafka.errors.KafkaError, asyncpg's errors and OtherLogError.
        """
        self._cluster_id = await cluster_id(self._settings)
        self._consumer = AIOKafkaConsumer(
            group_id=self._settings.topic_prefix + "notifier",
            enable_auto_commit=False,
            # Every partition has a position in Postgres, or a receiver's start.
            auto_offset_reset="none",
            session_timeout_ms=10_000,
            heartbeat_interval_ms=2_000,
            # While a topic is empty, Kafka answers a fetch only after this time. A new record is answered at once.
            fetch_max_wait_ms=2_000,
            **connection(self._settings),
        )
        self._consumer.subscribe(list(self._names), listener=self)
        try:
            await self._consumer.start()
            while await self._step():
                on_progress()
        finally:
            await self._consumer.stop()

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Do nothing: what was read and not stored is read again by the new owner."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Continue each partition at the position in Postgres. The group's offsets in Kafka may have been deleted."""
        async with self._pool.acquire() as held:
            subscribers = await self._subscribers(held)
            rows = await held.fetch(_sql["positions"])
        positions = {
            (r["topic"], r["partition"]): r["next_offset"] for r in rows if r["cluster_id"] == self._cluster_id
        }
        for part in assigned:
            place = (self._names[part.topic], part.partition)
            self._consumer.seek(part, first_needed(place, positions.get(place, 0), subscribers))

    async def _step(self) -> bool:
        """Read and store some records. Return False if there is no receiver."""
        fetched = await self._consumer.getmany(timeout_ms=1000, max_records=_AT_ONCE)
        records = [(self._names[part.topic], record) for part, found in fetched.items() for record in found]
        async with self._pool.acquire() as held:
            # Read the receivers after the records. So a receiver gets every record that was written after it was added.
            subscribers = await self._subscribers(held)
            if not subscribers:
                return False
            if not records:
                return True
            ends = {part: found[-1].offset + 1 for part, found in fetched.items()}
            await self._store(held, plan(records, subscribers), ends)
        with contextlib.suppress(CommitFailedError, IllegalStateError, RebalanceInProgressError):
            # Only for tools that show how far the group has read.
            await self._consumer.commit(ends)
        return True

    async def _store(self, held: Any, planned: Plan, ends: Mapping[TopicPartition, int]) -> None:
        made = list(planned.notifications.values())
        async with held.transaction():
            if made:
                columns = zip(*((one.id, one.event, one.subject, one.body) for one in made), strict=True)
                await held.execute(_sql["add_notifications"], *map(list, columns))
                pairs = zip(*planned.deliveries, strict=True)
                await held.execute(_sql["add_deliveries"], *map(list, pairs), self._settings.notify_retry_for)
            places = zip(*((self._names[part.topic], part.partition, end) for part, end in ends.items()), strict=True)
            await held.execute(_sql["advance"], *map(list, places), self._cluster_id)
            if made:
                hit("planner.before_commit")
        if made:
            hit("planner.after_commit")
            self._wake_sender.set()

    async def _subscribers(self, held: Any) -> list[Subscriber]:
        starts: dict[str, dict[Partition, int]] = {}
        for row in await held.fetch(_sql["starts"]):
            if row["cluster_id"] != self._cluster_id:
                raise OtherLogError(
                    "a receiver was added while another Kafka was used; remove it and add it again: everyrun notify "
                    f"remove {row['receiver_id']}"
                )
            starts.setdefault(row["receiver_id"], {})[row["topic"], row["partition"]] = row["first_offset"]
        return [
            Subscriber(
                row["receiver_id"], row["format"], row["events"], row["workflows"], starts.get(row["receiver_id"], {})
            )
            for row in await held.fetch(_sql["receivers"])
        ]
