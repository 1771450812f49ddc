"""Ask Kafka for its cluster id and topics, and write one test record to the topic ``probes``."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from everyrun.doctor.facts import KafkaFacts
from everyrun.log import topics
from everyrun.log.cloudevents import record, timestamp
from everyrun.log.connection import connection
from everyrun.log.events import ProbeWritten
from everyrun.redact import describe
from everyrun.settings import Settings

#: Timeout in seconds of each of the two steps: reading the cluster id and topics, and writing the test record.
_WITHIN = 20.0


async def ask_kafka(settings: Settings) -> KafkaFacts:
    """Return the facts about Kafka. If Kafka fails, the error is returned as one of the facts, and not raised."""
    try:
        async with asyncio.timeout(_WITHIN):
            cluster_id = await topics.cluster_id(settings)
            live = await topics.live(settings)
    except (KafkaError, OSError) as error:
        return KafkaFacts(problem=describe(error))
    differences = topics.differences(topics.declared(), live, settings.topic_prefix)
    if "probes" not in live:
        return KafkaFacts(None, cluster_id, differences, f"the topic {settings.topic('probes')} is missing")
    try:
        async with asyncio.timeout(_WITHIN):
            clock = await _probe(settings)
    except (KafkaError, OSError) as error:
        return KafkaFacts(None, cluster_id, differences, describe(error))
    return KafkaFacts(None, cluster_id, differences, None, clock)


async def _probe(settings: Settings) -> float:
    """Write a test record, and return how many seconds the broker's clock is ahead of this machine's.

    The topic has LogAppendTime, so the record's timestamp is the broker's time. Raises KafkaError.
    """
    producer = AIOKafkaProducer(**connection(settings), acks="all", request_timeout_ms=10_000)
    await producer.start()
    try:
        host = socket.gethostname()
        began = time.time()
        probe = record(
            "probes",
            ProbeWritten(host),
            key=host,
            id=str(uuid.uuid4()),
            source="/everyrun/doctor",
            time=timestamp(began),
        )
        sent = await producer.send_and_wait(
            settings.topic("probes"), value=probe.value, key=probe.key, headers=probe.headers
        )
        return float(sent.timestamp) / 1000 - (began + time.time()) / 2
    finally:
        await producer.stop()
