"""What the log says, read by a consumer of its own: is every webhook that was answered kept, every row published?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.log.reader import end_offsets
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


class Witness:
    """Reads the topics on from where it was made, or has read to. ``heard``: runs of which a webhook is in the log."""

    def __init__(self, settings: Settings, offsets: Offsets) -> None:
        self._settings = settings
        self._offsets = offsets
        self._reading = asyncio.Lock()
        self.heard: set[str] = set()
        self.published: dict[str, str] = {}

    @classmethod
    async def now(cls, bootstrap: str) -> Witness:
        """One that begins at the present ends of the topics."""
        settings = Settings(kafka_bootstrap=bootstrap)
        return cls(settings, await end_offsets(settings, TOPICS))

    async def read(self) -> None:
        """Read on to the present ends; one reader at a time. Raises KafkaError."""
        async with self._reading:
            await self._read()

    async def _read(self) -> None:
        ends = await end_offsets(self._settings, TOPICS)
        if all(self._offsets.get(place, 0) >= end for place, end in ends.items()):
            # And no consumer that is stopped as soon as it is started: aiokafka raises CancelledError there.
            return
        places = {TopicPartition(self._settings.topic(topic), number): (topic, number) for topic, number in ends}
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.kafka_bootstrap, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(places))
            for there, place in places.items():
                consumer.seek(there, self._offsets.get(place, 0))
            while any(self._offsets.get(place, 0) < end for place, end in ends.items()):
                for there, records in (await consumer.getmany(timeout_ms=500)).items():
                    for record in records:
                        self._take(places[there][0], record.value or b"")
                    self._offsets[places[there]] = records[-1].offset + 1
        finally:
            await consumer.stop()

    def _take(self, topic: str, value: bytes) -> None:
        found: Any
        if topic == "runs":
            found = msgspec.json.decode(value, type=_Observed)
            if found.source == "webhook":
                self.heard.add(found.run.id)
        elif topic == "deliveries":
            self.heard.add(msgspec.json.decode(value, type=_Deferred).run_id)
        else:
            found = msgspec.json.decode(value, type=_Result)
            self.published[found.input_id] = found.version


def unheard(truth: Iterable[dict[str, Any]], heard: set[str]) -> list[str]:
    """Runs of which a webhook was answered with 2xx, but none is in the log."""
    return [line["run_id"] for line in truth if line["webhooks"]["delivered"] and line["run_id"] not in heard]


def unpublished(rows: dict[str, str], published: dict[str, str]) -> list[str]:
    """Inputs whose last record on the topic is not the version in the table; ``rows``: those that have a run."""
    return [input_id for input_id, version in rows.items() if published.get(input_id) != version]
