"""Write records to the log. All in-sync replicas acknowledge them, and retries of the client create no duplicates."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder

from everyrun.log.cloudevents import Record
from everyrun.log.connection import connection
from everyrun.log.keys import partition_of
from everyrun.settings import Settings
from everyrun.telemetry import log

_log = log(__name__)

#: Largest record that the topics with payloads accept (infra/kafka/topics.yaml).
MAX_RECORD_BYTES = 16 << 20
_BATCH_BYTES = 256 << 10
#: Seconds to wait for the next acknowledgement. The wait is limited, because callers hold locks and connections.
_ACKNOWLEDGED_WITHIN = 30.0
_STOPPED_WITHIN = 5.0


def _partitioner(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    if key is None:
        return random.choice(available or partitions)  # noqa: S311
    return partitions[partition_of(key, len(partitions))]


class Log(Protocol):
    """The interface for writing to the log: ``Producer``, or tests/memory_log.py."""

    async def append(self, records: Iterable[Record]) -> None:
        """Write the records, and wait until all are acknowledged. After an error, each may or may not be written."""


class _Client:
    """An aiokafka producer, and the timeouts of the appends that wait for it."""

    def __init__(self, kafka: AIOKafkaProducer) -> None:
        self.kafka = kafka
        self.timeouts: set[asyncio.Timeout] = set()


class Producer:
    """A Kafka producer with acks=all and idempotence. Use as an async context manager.

    After a failed append, a new aiokafka producer replaces the old one, for two reasons. First, after a record batch
    has failed for good, an idempotent producer can no longer write to that partition: the broker waits for the sequence
    number of that record batch. Second, if the leader of a partition is known but unavailable, aiokafka's producer
    retries without end.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        linger_ms: int = 2,
        compression: str | None = None,
        acknowledged_within: float = _ACKNOWLEDGED_WITHIN,
    ) -> None:
        self._prefix = settings.topic_prefix
        self._within = acknowledged_within
        self._options: dict[str, Any] = {
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": linger_ms,
            "compression_type": compression,
            "max_request_size": MAX_RECORD_BYTES,
            # The default of 16 KB holds only a few runs, so a burst would take many small requests.
            "max_batch_size": _BATCH_BYTES,
            "partitioner": _partitioner,
            "request_timeout_ms": 60_000,
            **connection(settings),
        }
        self._client: _Client | None = self._new_client()
        self._renewing = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Producer:
        if self._client is not None:
            await _start(self._client.kafka)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _stop(client.kafka, _STOPPED_WITHIN)
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=_STOPPED_WITHIN)

    async def append(self, records: Iterable[Record]) -> None:
        """Write the records, in order within each partition; return once all are acknowledged.

        Raises aiokafka.errors.KafkaError if that fails, or KafkaTimeoutError if nothing is acknowledged for 30 s. After
        an error, each record may or may not be written. Records that were not sent before the error are never sent.
        """
        given = list(records)
        _refuse_large(given)
        if not given:
            return
        client = None
        try:
            async with asyncio.timeout(self._within) as limit:
                client = self._client or await self._renewed_client()
                client.timeouts.add(limit)
                try:
                    if len(given) == 1:
                        (one,) = given
                        topic = self._prefix + one.topic
                        await client.kafka.send_and_wait(topic, value=one.value, key=one.key, headers=one.headers)
                    else:
                        await self._append_many(client.kafka, given, limit)
                finally:
                    client.timeouts.discard(limit)
        except TimeoutError:
            self._replace(client, 0.0, "no record was acknowledged in time")
            raise KafkaTimeoutError(f"not acknowledged within {self._within:g} s") from None
        except KafkaError as error:
            self._replace(client, self._within, f"{type(error).__name__}: {error}")
            raise

    async def _append_many(self, kafka: AIOKafkaProducer, records: Sequence[Record], limit: asyncio.Timeout) -> None:
        """Append the records as record batches, with one future for each batch. One per record would cost twice."""
        waiting: list[asyncio.Future[Any]] = []
        open_batches: dict[tuple[str, int], BatchBuilder] = {}
        partitions: dict[str, list[int]] = {}

        async def send(batch: BatchBuilder, partition: tuple[str, int]) -> None:
            topic, number = partition
            batch.close()
            sent: asyncio.Future[Any] = await kafka.send_batch(batch, topic, partition=number)
            sent.add_done_callback(lambda sent: self._prolong(limit, sent))
            waiting.append(sent)

        try:
            for r in records:
                topic = self._prefix + r.topic
                if topic not in partitions:
                    partitions[topic] = sorted(await kafka.partitions_for(topic))
                partition = (topic, _partitioner(r.key, partitions[topic], partitions[topic]))
                batch = open_batches.get(partition)
                if batch is None or not _added(batch, r):
                    if batch is not None:
                        await send(batch, partition)
                    batch = open_batches[partition] = kafka.create_batch()
                    _added(batch, r)
            for partition, batch in open_batches.items():
                await send(batch, partition)
        except asyncio.CancelledError:
            for sent in waiting:
                sent.cancel()
            raise
        finally:
            # Wait for all record batches before raising the first error, so that none fails unnoticed later.
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _prolong(self, limit: asyncio.Timeout, sent: asyncio.Future[Any]) -> None:
        # A large append may take longer than the timeout, as long as acknowledgements arrive.
        if not sent.cancelled() and not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time() + self._within)

    def _new_client(self) -> _Client:
        return _Client(AIOKafkaProducer(**self._options))

    async def _renewed_client(self) -> _Client:
        async with self._renewing:
            if self._client is None:
                client = self._new_client()
                await _start(client.kafka)
                self._client = client
            return self._client

    def _replace(self, client: _Client | None, flush_within: float, why: str) -> None:
        """Use a new client from now on. The old client gets ``flush_within`` seconds to finish other appends."""
        if client is None or client is not self._client:
            return
        _log.warning("replacing the Kafka producer", why=why)
        self._client = None
        if not flush_within:
            now = asyncio.get_running_loop().time()
            for limit in client.timeouts:
                if not limit.expired():
                    limit.reschedule(now)
        task = asyncio.create_task(_stop(client.kafka, flush_within))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)


async def _start(kafka: AIOKafkaProducer) -> None:
    try:
        await kafka.start()
    except BaseException:
        await kafka.stop()
        raise


async def _stop(kafka: AIOKafkaProducer, flush_within: float) -> None:
    """Flush for at most ``flush_within`` seconds, and stop.

    Records that are not sent by then are never sent, so that none of them can follow a newer record in the log.
    """
    stopping = asyncio.create_task(kafka.stop())
    await asyncio.wait({stopping}, timeout=flush_within)
    if not stopping.done():
        # aiokafka has no public way to stop without flushing. Closing the connection ends a request in progress.
        kafka._sender.sender_task.cancel()
        await kafka.client.close()
        await asyncio.wait({stopping}, timeout=_STOPPED_WITHIN)
        stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)


def _refuse_large(records: Sequence[Record]) -> None:
    for r in records:
        if len(r.value) > MAX_RECORD_BYTES:
            raise MessageSizeTooLargeError(f"a record has {len(r.value)} bytes; the limit is {MAX_RECORD_BYTES}")


def _added(batch: BatchBuilder, r: Record) -> bool:
    """Add the record; return False if the batch is full. An empty batch takes any record."""
    return batch.append(timestamp=None, key=r.key, value=r.value, headers=r.headers) is not None
