"""Adapt Faust to the processor.

Faust handles one record at a time, and commits every record that an agent has seen. The processor needs this instead:

- A poll (all records of one partition in one fetch) is one Faust event, applied in one transaction: ``WholePolls``.
- A fetch is limited by bytes, not only by records: ``SizedConsumerThread``.
- The polls of a partition are acknowledged in order, so a commit needs no search for gaps: ``InOrderConsumer``.
- An agent that waits for polls sleeps until one arrives, without a timer: ``sleep_until_arrival``.
- A killed worker's partitions move to other workers within seconds. The worker of a partition of ``batches`` also gets
  the partition of ``runs`` with the same number: ``faust_app``.
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

#: Approximate limits of one fetch from all partitions: the number of records, and the total size of their values after
#: decompression, in bytes. Kafka and Faust themselves limit only the number of records and the compressed size. But
#: Faust buffers about twenty fetches for the agent, so their size in memory must be limited too.
MAX_RECORDS, MAX_BYTES = 2000, 4 << 20
#: Number of records in the first fetch, when the size of a record is not known yet.
_FIRST_FETCH = 200


class PollRecord:
    """Presents the records of one partition in one poll to Faust as a single record.

    Its value is the list of records, and its offset is that of the last record. To acknowledge a poll is also to
    acknowledge all earlier records of the partition. So the polls of a partition must be acknowledged in order.
    Otherwise, an earlier poll that is not applied yet would be lost.
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
    """Make ``stream.noack_take`` sleep until an event arrives, instead of waking up every ``within`` seconds.

    ``within`` then counts from the arrival of the event.
    """
    arrived, wait_for_stopped = asyncio.Event(), stream.wait_for_stopped

    def note(value: Any) -> Any:
        arrived.set()
        return value

    async def wait_for_arrival(*events: asyncio.Event, timeout: float | None = None) -> Any:
        await wait_for_stopped(arrived)
        arrived.clear()
        return await wait_for_stopped(*events, timeout=timeout)

    # noack_take registers another function that the stream calls with each event. That function can block. ``note`` is
    # registered before it, so ``note`` sees each event at once.
    stream.add_processor(note)
    stream.wait_for_stopped = wait_for_arrival


class WholePolls(SchedulingStrategyT):
    """A ConsumerScheduler for Faust that yields each poll as a single record.

    Faust needs the same time for each record that it handles. So it needs this time only once for a poll of a thousand
    records.
    """

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """Yield the polls sorted by topic, so that ``batches`` comes before ``runs``."""
        for tp in sorted(records):
            if records[tp]:
                yield tp, PollRecord(records[tp])


def next_fetch(count: int, size: int) -> int:
    """Return how many records to fetch next, given that the last ``count`` records had ``size`` bytes. Pure."""
    return max(1, min(MAX_RECORDS, MAX_BYTES * count // max(size, 1)))


class SizedConsumerThread(aiokafka.AIOKafkaConsumerThread):
    """A consumer thread for Faust that limits each fetch to about MAX_BYTES of record values."""

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
    """A consumer for Faust whose agent acknowledges the records of each partition in order.

    Faust's own consumer is too slow for polls. Before each commit, it searches the acknowledged offsets for the first
    gap. A poll has only the offset of its last record, so Faust sees a gap before each poll. It assumes that compaction
    removed the records in the gap, and adds their offsets and that of the poll. It then finds the poll's offset twice,
    and stops there. So it would commit at most one poll per partition and second.

    This consumer needs no search. Polls are acknowledged in order, so every offset up to the last acknowledged one is
    done.
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
        """Do nothing, because nothing would remove a recorded gap again."""


class InOrderTransport(aiokafka.Transport):
    """A transport for Faust that uses ``InOrderConsumer``."""

    Consumer: ClassVar = InOrderConsumer


def faust_app(settings: Settings) -> faust.App:
    """Return the Faust app. Its timeouts are short, so that the partitions of a killed worker move within seconds."""
    app = faust.App(
        settings.topic_prefix + "processor",
        broker=["kafka://" + broker for broker in settings.kafka_bootstrap.split(",")],
        broker_credentials=_credentials(settings),
        store="memory://",
        # Faust creates a folder for its tables, though the app has no tables.
        datadir=str(settings.data_dir / "faust"),
        web_enabled=False,
        # The app has no tables to replicate. But with this setting, Faust uses its own assignor, which assigns the
        # partitions of batches and runs with the same number to the same worker. Round robin would not do that.
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
        # Without this limit, one fetch returns all records that were received. They can take hundreds of megabytes
        # after decompression.
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
