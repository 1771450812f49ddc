"""Detect topics of Everyrun installations, because an installation would process replayed events as new ones.

There are two signs that a topic belongs to an installation:

- its records: they include events of Everyrun without the mark of a replay;
- its name: ``x.runs`` belongs to an installation if ``x.batches`` and all other topics of Everyrun exist, even if
  ``x.runs`` is empty.
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

#: Number of records that are read at the beginning and at the end of each partition.
_SAMPLE = 50
_TYPES = {str(cast(Any, kind).__struct_config__.tag) for kinds in events.TOPICS.values() for kind in kinds}
#: Milliseconds to wait for the records of one sample.
_WITHIN_MS = 10_000


def sibling_prefix(topic: str, there: Collection[str]) -> str | None:
    """Return the prefix of the installation to which a topic with this name belongs; None if to none. Pure.

    ``there`` contains the names of all existing topics. A topic belongs to an installation if all topics that Everyrun
    needs exist under the same prefix.
    """
    needed = {declared.name for declared in topics.declared()} - {"probes"}
    for name in sorted(needed, key=len, reverse=True):
        prefix = topic.removesuffix(name)
        if prefix != topic and all(prefix + other in there for other in needed):
            return prefix
    return None


def live_event(headers: Any) -> str | None:
    """Return the event's type if Everyrun wrote the event live; None for replayed events and other records. Pure."""
    kind = header(headers, "ce_type")
    return kind if kind in _TYPES and not header(headers, f"ce_{MARK}") else None


async def reason_to_refuse(settings: Settings, topic: str, partitions: Collection[int]) -> str | None:
    """Return why events should not be replayed to a topic; None if the topic belongs to no installation.

    ``topic`` is a full name. Raises aiokafka.errors.KafkaError.
    """
    admin = AIOKafkaAdminClient(**connection(settings))
    await admin.start()
    try:
        prefix = sibling_prefix(topic, set(await admin.list_topics()))
    finally:
        await admin.close()
    if prefix is not None:
        return f"{topic} is a topic of the Everyrun installation whose topics begin with {prefix!r}"
    return await _reason_in_records(settings, [TopicPartition(topic, number) for number in sorted(partitions)])


async def _reason_in_records(settings: Settings, parts: list[TopicPartition]) -> str | None:
    consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **connection(settings))
    await consumer.start()
    try:
        first, end = await consumer.beginning_offsets(parts), await consumer.end_offsets(parts)
        for part in parts:
            for start in sorted({first[part], max(first[part], end[part] - _SAMPLE)}):
                if (found := await _live_event_in(consumer, part, start, end[part])) is not None:
                    return found
        return None
    finally:
        await consumer.stop()


async def _live_event_in(consumer: AIOKafkaConsumer, part: TopicPartition, start: int, end: int) -> str | None:
    """Read a sample of the records from ``start`` on. If it has a live event, say where; otherwise return None."""
    if start >= end:
        return None
    consumer.assign([part])
    consumer.seek(part, start)
    for record in (await consumer.getmany(part, timeout_ms=_WITHIN_MS, max_records=_SAMPLE)).get(part, ()):
        if (kind := live_event(record.headers)) is not None:
            where = f"partition {part.partition}, offset {record.offset}"
            return f"{part.topic} has live events of an Everyrun installation ({kind} at {where})"
    return None
