"""Read the log independently, to check that each acknowledged webhook is in it and each row is published."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.log.reading import end_offsets
from everyrun.settings import Settings

TOPICS = ("runs", "deliveries", "results")
Offsets = dict[tuple[str, int], int]


class _Run(msgspec.Struct):
    id: str


class _Observed(msgspec.Struct):
    source: str
    run: _Run


class _Deferred(msgspec.Struct):
    run_id: str


class _Result(msgspec.Struct):
    input_id: str
    version: str


class LogWitness:
    """Reads the topics from where they ended when it was made.

    ``webhook_runs`` are the runs of which a webhook is in the log; ``published`` has the last version of each input.
    """

    def __init__(self, settings: Settings, offsets: Offsets) -> None:
        self._settings = settings
        self._offsets = offsets
        self._reading = asyncio.Lock()
        self.webhook_runs: set[str] = set()
        self.published: dict[str, str] = {}

    @classmethod
    async def from_now(cls, bootstrap: str) -> LogWitness:
        """Return a witness that starts at the present ends of the topics."""
        settings = Settings(kafka_bootstrap=bootstrap)
        return cls(settings, await end_offsets(settings, TOPICS))

    async def read(self) -> None:
        """Read up to the present ends; concurrent calls take turns. Raises KafkaError."""
        async with self._reading:
            await self._read()

    async def _read(self) -> None:
        ends = await end_offsets(self._settings, TOPICS)
        if all(self._offsets.get(position, 0) >= end for position, end in ends.items()):
            # Start no consumer: aiokafka raises CancelledError if one is stopped as soon as it is started.
            return
        partitions = {TopicPartition(self._settings.topic(topic), number): (topic, number) for topic, number in ends}
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.kafka_bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(partitions))
            for partition, position in partitions.items():
                consumer.seek(partition, self._offsets.get(position, 0))
            while any(self._offsets.get(position, 0) < end for position, end in ends.items()):
                for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                    for record in records:
                        self._take(partitions[partition][0], record.value or b"")
                    self._offsets[partitions[partition]] = records[-1].offset + 1
        finally:
            await consumer.stop()

    def _take(self, topic: str, value: bytes) -> None:
        found: Any
        if topic == "runs":
            found = msgspec.json.decode(value, type=_Observed)
            if found.source == "webhook":
                self.webhook_runs.add(found.run.id)
        elif topic == "deliveries":
            self.webhook_runs.add(msgspec.json.decode(value, type=_Deferred).run_id)
        else:
            found = msgspec.json.decode(value, type=_Result)
            self.published[found.input_id] = found.version


def missing_webhooks(truth: Iterable[dict[str, Any]], webhook_runs: set[str]) -> list[str]:
    """Return the runs with a webhook that was answered with 2xx, but with none in the log."""
    return [line["run_id"] for line in truth if line["webhooks"]["delivered"] and line["run_id"] not in webhook_runs]


def unpublished_inputs(rows: dict[str, str], published: dict[str, str]) -> list[str]:
    """Return the inputs whose last record on the topic is not the version in the table (``rows``: id to version)."""
    return [input_id for input_id, version in rows.items() if published.get(input_id) != version]
