"""Where the log ends."""

from __future__ import annotations

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.settings import Settings


async def end_offsets(settings: Settings, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """The end of each partition of the topics (short names), by (short name, number).

    Raises aiokafka.errors.KafkaError where Kafka does not answer.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap)
    await consumer.start()
    try:
        # Asking for the topics fetches their metadata.
        await consumer.topics()
        wanted = {
            TopicPartition(settings.topic(topic), number): (topic, number)
            for topic in topics
            for number in consumer.partitions_for_topic(settings.topic(topic)) or ()
        }
        ends = await consumer.end_offsets(list(wanted))
    finally:
        await consumer.stop()
    return {wanted[partition]: end for partition, end in ends.items()}
