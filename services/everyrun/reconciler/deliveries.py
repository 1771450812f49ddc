"""Complete deferred deliveries: fetch the payload behind a webhook's signed link.

If the link cannot be used, fetch the run from Extend's API instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, IllegalStateError, RebalanceInProgressError

from everyrun import telemetry
from everyrun.extend.client import Extend, ExtendError
from everyrun.failpoints import hit
from everyrun.log.cloudevents import Record, header
from everyrun.log.connection import connection
from everyrun.log.events import DeliveryDeferred
from everyrun.log.observation import InvalidRunError, observed, read_head
from everyrun.log.producer import Log
from everyrun.reconciler.links import LinkError, Links
from everyrun.reconciler.run_fetcher import SERVICE, fetch_run
from everyrun.settings import Settings

_log = telemetry.log(__name__)
_decode = msgspec.json.Decoder(DeliveryDeferred).decode

#: How many deliveries are fetched at the same time, and the timeout for each of them, in seconds.
_AT_ONCE = 16
_EACH_WITHIN = 120.0


def fetched_record(run: bytes, delivery: DeliveryDeferred, event_id: str, time: str) -> Record:
    """Return the record for a fetched payload. Raises InvalidRunError if the payload is not the run of this delivery.

    ``time`` is when the bridge received the webhook. The record gets that time, not the time of the fetch, for two
    reasons. The payload shows the run as it was when the webhook was received. And if a delivery is fetched twice, both
    records must be the same.
    """
    try:
        run.decode()
    except UnicodeDecodeError:
        raise InvalidRunError("not UTF-8 text") from None
    head = read_head(run)
    if head.id != delivery.run_id:
        raise InvalidRunError(f"the payload is of run {head.id[:80]}")
    return observed(
        run,
        head,
        source="webhook",
        id=f"delivery-{event_id}",
        time=time,
        service=SERVICE,
        event_type=delivery.event_type,
    )


class Deliveries:
    """Reads ``delivery-deferred`` events, and writes a ``run-observed`` event for each to the log."""

    def __init__(self, links: Links, extend: Extend, log: Log) -> None:
        self._links = links
        self._extend = extend
        self._log = log

    async def consume(self, consumer: AIOKafkaConsumer) -> None:
        """Complete the deliveries in the topic, forever. Raises KafkaError.

        The offset of a delivery is committed only after Kafka has acknowledged its ``run-observed`` event. So no
        delivery is lost.
        """
        while True:
            taken = await consumer.getmany(timeout_ms=500, max_records=_AT_ONCE)
            records = [record for part in taken.values() for record in part]
            if not records:
                continue
            outcomes = await asyncio.gather(
                *(self.outcome(record.key, record.value, record.headers) for record in records)
            )
            hit("deliveries.before_produce")
            await self._log.append([outcome for outcome in outcomes if outcome is not None])
            hit("deliveries.before_offset")
            try:
                await consumer.commit({part: found[-1].offset + 1 for part, found in taken.items()})
                hit("deliveries.after_offset")
            except (CommitFailedError, IllegalStateError, RebalanceInProgressError) as error:
                # Another reconciler has the partition now, and writes these records again. That does no harm, because
                # the processor gets the same states of the same runs.
                _log.info("cannot commit offsets of deliveries", error=str(error))

    async def outcome(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> Record | None:
        """Return the record for the run in one delivery.

        Return None if the delivery cannot be read, or if its run cannot be fetched now. Polling will find the run
        later.
        """
        try:
            delivery = _decode(value or b"")
        except (msgspec.DecodeError, UnicodeError):
            _log.warning("cannot read a delivery; the processor quarantines it", key=repr(key))
            return None
        try:
            async with asyncio.timeout(_EACH_WITHIN):
                return await self._fetch(delivery, header(headers, "ce_id"), header(headers, "ce_time"))
        except (ExtendError, TimeoutError) as error:
            _log.warning("cannot complete a delivery; polling will", run=delivery.run_id, error=str(error) or "timeout")
            return None

    async def _fetch(self, delivery: DeliveryDeferred, event_id: str, time: str) -> Record:
        try:
            return fetched_record(await self._links.fetch(delivery.url), delivery, event_id, time)
        except (LinkError, InvalidRunError) as error:
            _log.info("cannot fetch a signed link; fetching the run", run=delivery.run_id, reason=str(error))
            return await fetch_run(self._extend, delivery.run_id)


def deliveries_consumer(settings: Settings) -> AIOKafkaConsumer:
    """Return a consumer of the topic ``deliveries``, not yet started. All reconcilers are in its consumer group."""
    return AIOKafkaConsumer(
        settings.topic("deliveries"),
        group_id=settings.topic_prefix + "reconciler",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=10_000,
        heartbeat_interval_ms=2_000,
        max_poll_interval_ms=300_000,
        # While the topic is empty, Kafka answers a fetch only after this time. A new record is answered at once.
        fetch_max_wait_ms=2_000,
        **connection(settings),
    )
