"""Reading a known stretch of the log, without a consumer group."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.log.connection import connection
from everyrun.projection.decode import Poll
from everyrun.settings import Settings


async def read_range(settings: Settings, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Poll]:
    """The records of ``topic`` (short name) from offset ``start`` up to, without, ``end``; poll by poll, in order.

    There may be no record at the last offsets. Waits where the log ends before ``end``.
    Raises aiokafka.errors.KafkaError where Kafka does not answer.
    """
    if start >= end:
        # And no consumer that is stopped as soon as it is started: aiokafka raises CancelledError there.
        return
    name = TopicPartition(settings.topic(topic), partition)
    consumer = AIOKafkaConsumer(
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=4 << 20,
        **connection(settings),
    )
    await consumer.start()
    try:
        consumer.assign([name])
        consumer.seek(name, start)
        while start < end:
            found = await consumer.getmany(timeout_ms=1000, max_records=2000)
            # The end of a transaction, and what was compacted away, are offsets without records: only the position
            # says that they are passed.
            start = await consumer.position(name)
            for records in found.values():
                wanted = [record for record in records if record.offset < end]
                if wanted:
                    yield Poll(topic, partition, wanted)
    finally:
        await consumer.stop()
