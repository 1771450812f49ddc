"""Tell if a topic is one that an Everyrun reads or writes: what is written there would be taken as new.

There are two signs. Its records: events of Everyrun without the mark of a replay. Its name: a topic beside its
siblings, ``x.runs`` where there are ``x.batches`` and the others, is of an installation, even while it is empty.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from everyrun.log import events, topics
from everyrun.log.cloudevents import header
from everyrun.log.connection import connection
from everyrun.replay.export.targets import MARK
from everyrun.settings import Settings

#: Records that are looked at, from the beginning and from the end of each partition.
_LOOKED_AT = 50
_TYPES = {str(cast(Any, kind).__struct_config__.tag) for kinds in events.TOPICS.values() for kind in kinds}
_WITHIN_MS = 10_000


def sibling_prefix(topic: str, there: Collection[str]) -> str | None:
    """Return the prefix of the installation that the topic belongs to by its name; None if it belongs to none. Pure.

    It belongs to one if all the topics that an Everyrun needs are there under the same prefix.
    """
    needed = {declared.name for declared in topics.declared()} - {"probes"}
    for name in sorted(needed, key=len, reverse=True):
        prefix = topic.removesuffix(name)
        if prefix != topic and all(prefix + other in there for other in needed):
            return prefix
    return None


def live_event(headers: Any) -> str | None:
    """Return the type of an event that an Everyrun wrote, and did not replay; None for anything else. Pure."""
    kind = header(headers, "ce_type")
    return kind if kind in _TYPES and not header(headers, f"ce_{MARK}") else None


async def reason_against(settings: Settings, topic: str, partitions: Collection[int]) -> str | None:
    """Return why nothing should be replayed into a topic (its full name), None if nothing speaks against it.

    Raises aiokafka.errors.KafkaError.
    """
    admin = AIOKafkaAdminClient(**connection(settings))
    await admin.start()
    try:
        prefix = sibling_prefix(topic, set(await admin.list_topics()))
    finally:
        await admin.close()
    if prefix is not None:
        return f"{topic} is a topic of the Everyrun whose topics begin with {prefix!r}"
    return await _by_its_records(settings, [TopicPartition(topic, number) for number in sorted(partitions)])


async def _by_its_records(settings: Settings, parts: list[TopicPartition]) -> str | None:
    consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **connection(settings))
    await consumer.start()
    try:
        first, end = await consumer.beginning_offsets(parts), await consumer.end_offsets(parts)
        for part in parts:
            for start in sorted({first[part], max(first[part], end[part] - _LOOKED_AT)}):
                if (found := await _live_in(consumer, part, start, end[part])) is not None:
                    return found
        return None
    finally:
        await consumer.stop()


async def _live_in(consumer: AIOKafkaConsumer, part: TopicPartition, start: int, end: int) -> str | None:
    """Look at the records from ``start``; waits for no record that is not there."""
    if start >= end:
        return None
    consumer.assign([part])
    consumer.seek(part, start)
    for record in (await consumer.getmany(part, timeout_ms=_WITHIN_MS, max_records=_LOOKED_AT)).get(part, ()):
        if (kind := live_event(record.headers)) is not None:
            where = f"partition {part.partition}, offset {record.offset}"
            return f"{part.topic} has events that an Everyrun wrote and that are no replays ({kind} at {where})"
    return None
