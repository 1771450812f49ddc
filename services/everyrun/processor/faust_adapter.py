"""Everything that the processor changes about Faust.

Faust handles one record at a time and commits whatever an agent has seen. The processor needs other behavior:

- A poll (all records of one partition in one fetch) is one Faust event, applied in one transaction: ``WholePolls``.
- A fetch is limited by bytes, not only by records: ``SizedConsumerThread``.
- Polls of a partition are acknowledged in order, so a commit needs no search for gaps: ``InOrderConsumer``.
- An agent that waits for polls sleeps until one arrives, without a timer: ``sleep_until_arrival``.
- A killed worker's partitions move within seconds, and ``batches`` and ``runs`` stay together: ``faust_app``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import faust
from faust.transport.drivers import aiokafka
from faust.types import TP
from faust.types.transports import SchedulingStrategyT

from everyrun.log.batching import size_of
from everyrun.log.connection import tls
from everyrun.settings import Settings

#: Approximate limits of one fetch, over all partitions: records, and bytes of their values. Kafka and Faust limit only
#: records and compressed bytes. Faust buffers about twenty fetches for the agent.
MAX_RECORDS, MAX_BYTES = 2000, 4 << 20
#: Records of the first fetch, while the size of a record is unknown.
_FIRST_FETCH = 200


class PollRecord:
    """Presents the records of one partition in one poll to Faust as a single record.

    Its value is the list of records; its offset is that of the last one. Acknowledging it acknowledges all records
    before it, so polls of a partition must be acknowledged in order, or an unfinished one would be lost.
    """

    def __init__(self, records: list[Any]) -> None:
        last = records[-1]
        self.value = records
        self.topic = last.topic
        self.partition = last.partition
        self.offset = last.offset
        self.timestamp = last.timestamp
        self.timestamp_type = last.timestamp_type
        self.headers: tuple[()] = ()
        self.key = None
        self.checksum = None
        self.serialized_key_size = -1
        self.serialized_value_size = -1


def sleep_until_arrival(stream: Any) -> None:
    """Let ``stream.noack_take`` sleep until an event arrives. It would wake up every ``within`` seconds at rest.

    ``within`` then counts from the arrival of an event.
    """
    arrived, wait_for_stopped = asyncio.Event(), stream.wait_for_stopped

    def note(value: Any) -> Any:
        arrived.set()
        return value

    async def wait_for_arrival(*events: asyncio.Event, timeout: float | None = None) -> Any:
        await wait_for_stopped(arrived)
        arrived.clear()
        return await wait_for_stopped(*events, timeout=timeout)

    # noack_take adds a processor of its own, which can block; this one comes first and notes every event.
    stream.add_processor(note)
    stream.wait_for_stopped = wait_for_arrival


class WholePolls(SchedulingStrategyT):
    """Faust's ConsumerScheduler that yields one record for each partition and poll.

    Faust's stream machinery costs as much for a thousand records as for one.
    """

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """Yield the polls sorted by topic, so ``batches`` comes before ``runs``."""
        for tp in sorted(records):
            if records[tp]:
                yield tp, PollRecord(records[tp])


def next_fetch(count: int, size: int) -> int:
    """Return how many records to fetch next, if the last ``count`` records had ``size`` bytes. Pure."""
    return max(1, min(MAX_RECORDS, MAX_BYTES * count // max(size, 1)))


class SizedConsumerThread(aiokafka.AIOKafkaConsumerThread):
    """Faust's consumer thread that fetches about MAX_BYTES of values at a time."""

    _next_fetch = _FIRST_FETCH

    async def _fetch_records(
        self, consumer: Any, active_partitions: set[TP], timeout: float | None = None, max_records: int | None = None
    ) -> Mapping[TP, list[Any]]:
        count = min(self._next_fetch, max_records or MAX_RECORDS)
        found: Mapping[TP, list[Any]] = await super()._fetch_records(consumer, active_partitions, timeout, count)
        fetched = [record for records in found.values() for record in records]
        if fetched:
            self._next_fetch = next_fetch(len(fetched), size_of(fetched))
        return found


class InOrderConsumer(aiokafka.Consumer):
    """Faust's consumer for an agent that acknowledges the records of each partition in order.

    Faust searches the acknowledged offsets for the first gap before it commits. A poll that is one record leaves a gap
    before each: Faust fills it with the offsets of a compacted topic, among them the poll's own, finds that one twice,
    and stops there. So it would commit at most one poll of a partition a second. In order, no search is needed: every
    offset below the last one is done.
    """

    logger = aiokafka.logger

    def _new_consumer_thread(self) -> SizedConsumerThread:
        return SizedConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: TP) -> int | None:
        acknowledged = self._acked[tp]
        if not acknowledged:
            return None
        end: int = max(acknowledged) + 1
        acknowledged.clear()
        self._acked_index[tp].clear()
        return end

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Record no gap: Faust would keep it for ever."""


class InOrderTransport(aiokafka.Transport):
    """Faust's transport with ``InOrderConsumer``."""

    Consumer: ClassVar = InOrderConsumer


def faust_app(settings: Settings) -> faust.App:
    """Return the Faust app. Unlike with Faust's defaults, a killed worker's partitions move within seconds."""
    app = faust.App(
        settings.topic_prefix + "processor",
        broker=["kafka://" + broker for broker in settings.kafka_bootstrap.split(",")],
        broker_credentials=_credentials(settings),
        store="memory://",
        # Faust creates a folder for its tables, though the app has none.
        datadir=str(settings.data_dir / "faust"),
        web_enabled=False,
        # The app has no tables, but only with standby replicas does Faust use its own assignor. That one gives
        # partition p of batches and of runs to the same worker; round robin would not.
        table_standby_replicas=1,
        topic_disable_leader=True,
        topic_allow_declare=False,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4 << 20,
        stream_buffer_maxsize=16,
        stream_wait_empty=False,
        broker_session_timeout=10,
        broker_heartbeat_interval=2,
        broker_rebalance_timeout=20,
        broker_request_timeout=30,
        broker_commit_interval=1,
        # Otherwise one fetch returns every record received: hundreds of megabytes of a log that compresses well.
        broker_max_poll_records=MAX_RECORDS,
        ConsumerScheduler=WholePolls,
        loghandlers=[],
    )
    app.transport = InOrderTransport(app.conf.broker_consumer, app)
    return app


def _credentials(settings: Settings) -> Any:
    context = tls(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password.get_secret_value(),
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)
