"""Where the log ends."""

from __future__ import annotations

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code

from everyrun.log.connection import connection
from everyrun.settings import Settings

Partition = tuple[str, int]
"""(short topic name, number)."""


async def end_offsets(settings: Settings, topics: Iterable[str]) -> dict[Partition, int]:
    """The end of each partition of the topics (short names), by (short name, number).

    Raises aiokafka.errors.KafkaError where Kafka does not answer, and where a topic is not there: a partition left
    out would pass for one that has nothing in it.
    """
    wanted = await partitions(settings, topics)
    consumer = AIOKafkaConsumer(**connection(settings))
    await consumer.start()
    try:
        ends = await consumer.end_offsets(list(wanted))
    finally:
        await consumer.stop()
    return {wanted[partition]: end for partition, end in ends.items()}


async def partitions(settings: Settings, topics: Iterable[str]) -> dict[TopicPartition, Partition]:
    """Every partition of the topics (short names). Raises aiokafka.errors.KafkaError as ``end_offsets`` does."""
    names = {settings.topic(topic): topic for topic in topics}
    admin = AIOKafkaAdminClient(**connection(settings))
    await admin.start()
    try:
        described = await admin.describe_topics(sorted(names))
    finally:
        await admin.close()
    for topic in described:
        if topic["error_code"]:
            raise for_code(topic["error_code"])(f"topic {topic['topic']}")
    return {
        TopicPartition(topic["topic"], part["partition"]): (names[topic["topic"]], part["partition"])
        for topic in described
        for part in topic["partitions"]
    }
