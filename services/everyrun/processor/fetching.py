"""How much is read at once: Kafka and Faust count records, and compressed bytes; memory is what they unpack to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from faust.transport.drivers import aiokafka
from faust.types import TP

from everyrun.projection.decode import LogRecord

#: Records of all partitions together that one reading takes at most, and bytes of their values, about. Faust holds
#: some twenty readings that wait for the agent.
MAX_RECORDS, MAX_BYTES = 2000, 4 << 20
#: Before the size of any record is known.
_FIRST = 200


def size_of(records: Iterable[LogRecord]) -> int:
    """Bytes of the records' values."""
    return sum(len(record.value or b"") for record in records)


def next_count(count: int, size: int) -> int:
    """How many records to read next, where ``count`` of ``size`` bytes were read last: as if the next were like them.

    Pure.
    """
    return max(1, min(MAX_RECORDS, MAX_BYTES * count // max(size, 1)))


class BySize(aiokafka.AIOKafkaConsumerThread):
    """Faust's reader, which takes so many records that their values have about MAX_BYTES."""

    _count = _FIRST

    async def _fetch_records(
        self, consumer: Any, active_partitions: set[TP], timeout: float | None = None, max_records: int | None = None
    ) -> Mapping[TP, list[Any]]:
        count = min(self._count, max_records or MAX_RECORDS)
        found: Mapping[TP, list[Any]] = await super()._fetch_records(consumer, active_partitions, timeout, count)
        read = [record for records in found.values() for record in records]
        if read:
            self._count = next_count(len(read), size_of(read))
        return found
