"""Writing records: acknowledged by all in-sync replicas, without duplicates from the client's own retries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder

from everyrun.log.cloudevents import Record
from everyrun.log.connection import connection
from everyrun.settings import Settings

#: Largest record that the topics with payloads take (infra/kafka/topics.yaml).
MAX_RECORD_BYTES = 16 << 20
_BATCH_BYTES = 256 << 10


@lru_cache(maxsize=1 << 14)
def _hash(key: bytes) -> int:
    # The hash is pure Python, and the runs of a batch have one key.
    return int(murmur2(key)) & 0x7FFFFFFF


def _partitioner(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """Kafka's own choice (murmur2 of the key), as aiokafka's default partitioner makes it."""
    if key is None:
        return random.choice(available or partitions)  # noqa: S311
    return partitions[_hash(key) % len(partitions)]


class Log(Protocol):
    """What a service needs of the log to write to it; a test hands in a twin."""

    async def append(self, records: Iterable[Record]) -> None:
        """Return when every record is acknowledged; else raise, and any of them may or may not be there."""


class Producer:
    """A Kafka producer with acks=all and idempotence. Use as an async context manager."""

    def __init__(self, settings: Settings, *, linger_ms: int = 2, compression: str | None = None) -> None:
        self._prefix = settings.topic_prefix
        self._producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            compression_type=compression,
            max_request_size=MAX_RECORD_BYTES,
            # The default of 16 KB holds a handful of runs: a burst would go out in many small requests.
            max_batch_size=_BATCH_BYTES,
            partitioner=_partitioner,
            request_timeout_ms=60_000,
            **connection(settings),
        )

    async def __aenter__(self) -> Producer:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def append(self, records: Iterable[Record]) -> None:
        """Write the records, those of a partition in their order; return when all are acknowledged.

        Raises aiokafka.errors.KafkaError otherwise.
        """
        given = list(records)
        if len(given) == 1:
            (one,) = given
            topic = self._prefix + one.topic
            await self._producer.send_and_wait(topic, value=one.value, key=one.key, headers=one.headers)
        elif given:
            await self._append_many(given)

    async def _append_many(self, records: Sequence[Record]) -> None:
        """A batch of our own for each partition: a future for each record costs as much as all else about it."""
        waiting: list[asyncio.Future[Any]] = []
        open_batches: dict[tuple[str, int], BatchBuilder] = {}
        partitions: dict[str, list[int]] = {}
        try:
            for r in records:
                topic = self._prefix + r.topic
                if topic not in partitions:
                    partitions[topic] = sorted(await self._producer.partitions_for(topic))
                place = (topic, _partitioner(r.key, partitions[topic], partitions[topic]))
                batch = open_batches.get(place)
                if batch is None or not _added(batch, r):
                    if batch is not None:
                        waiting.append(await self._send(batch, place))
                    batch = open_batches[place] = self._producer.create_batch()
                    _added(batch, r)
            for place, batch in open_batches.items():
                waiting.append(await self._send(batch, place))
        finally:
            # All are awaited before the first error is raised, so that none is left running unseen.
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _send(self, batch: BatchBuilder, place: tuple[str, int]) -> asyncio.Future[Any]:
        topic, partition = place
        batch.close()
        sent: asyncio.Future[Any] = await self._producer.send_batch(batch, topic, partition=partition)
        return sent


def _added(batch: BatchBuilder, r: Record) -> bool:
    """Whether the batch had room for the record; the first always has. Raises MessageSizeTooLargeError."""
    if len(r.value) > MAX_RECORD_BYTES:
        raise MessageSizeTooLargeError(f"a record of {len(r.value)} bytes: more than {MAX_RECORD_BYTES}")
    return batch.append(timestamp=None, key=r.key, value=r.value, headers=r.headers) is not None
