"""Keep an index that shows which events mention an id. The replay service fills it from the log; histories use it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.errors import EveryrunError
from everyrun.health import Health
from everyrun.log import topics as log_topics
from everyrun.log.reading import OffsetRange, Partition, RecordRange, bounds, read_ranges
from everyrun.projection.offsets import INPUTS
from everyrun.replay.history.event_index_keys import EventLocation, number_of, subjects_of
from everyrun.replay.progress import OnProgress, no_progress
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "event_index.sql")
#: Seconds between two rounds of indexing.
_INTERVAL = 10.0


class ForeignIndexError(EveryrunError):
    """The index was made from another Kafka cluster's log."""


class EventIndex:
    """The index in one database, of one Kafka cluster's log."""

    def __init__(self, pool: asyncpg.Pool, cluster_id: str) -> None:
        self._pool = pool
        self._cluster_id = cluster_id

    async def next_offsets(self) -> dict[Partition, int]:
        """Return the next offset to index, by partition; empty if there is no index of this cluster's log."""
        if not await self._pool.fetchval(_sql["index_exists"]):
            return {}
        rows = await self._pool.fetch(_sql["positions"])
        return {(r["topic"], r["partition"]): r["next_offset"] for r in rows if r["cluster_id"] == self._cluster_id}

    async def find(self, ids: Iterable[str], batches: Iterable[str] = ()) -> set[EventLocation]:
        """Return the locations of events that may mention one of the ids or observe a run of one of the batches."""
        if not await self._pool.fetchval(_sql["index_exists"]):
            return set()
        id_numbers = [number_of(identifier) for identifier in ids]
        rows = await self._pool.fetch(_sql["find"], id_numbers, [number_of(batch) for batch in batches])
        return {EventLocation.of(row["place"]) for row in rows}

    async def add(self, record_range: RecordRange) -> int:
        """Index those records of a range that are not indexed yet, in one transaction; return the number of entries.

        Raises ForeignIndexError.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("set local synchronous_commit = off")
            partition = (record_range.topic, record_range.partition)
            await connection.execute(_sql["add_partition"], *partition, self._cluster_id)
            row = await connection.fetchrow(_sql["lock_position"], *partition)
            if row is None or row["cluster_id"] != self._cluster_id:
                raise ForeignIndexError(
                    "the schema everyrun_index was made from another Kafka cluster; drop it with: "
                    "drop schema everyrun_index cascade, then run: everyrun migrate"
                )
            rows, batches = entries(record_range, row["next_offset"])
            await connection.copy_records_to_table(
                "places", schema_name="everyrun_index", columns=["id", "place"], records=rows
            )
            if batches:
                await connection.copy_records_to_table(
                    "batch_places", schema_name="everyrun_index", columns=["id", "places"], records=batches.items()
                )
            if record_range.next_offset > row["next_offset"]:
                await connection.execute(_sql["move_position"], *partition, record_range.next_offset)
        return len(rows)


def entries(record_range: RecordRange, start: int) -> tuple[list[tuple[int, int]], Mapping[int, list[int]]]:
    """Return the index entries of a range's records from offset ``start`` on.

    The first value is a list of pairs (id, location). The second value maps each batch to the locations of the events
    that observe a run of the batch. Ids, batches and locations are numbers, see :mod:`event_index_keys`.
    """
    rows: list[tuple[int, int]] = []
    batches: dict[int, list[int]] = defaultdict(list)
    base = EventLocation(record_range.topic, record_range.partition, 0).number()
    for record in record_range.records:
        if record.offset < start:
            continue
        subjects = subjects_of(record_range.topic, record)
        location = base | record.offset
        rows += [(number_of(identifier), location) for identifier in subjects.ids]
        if subjects.batch is not None:
            batches[number_of(subjects.batch)].append(location)
    return rows, batches


async def ranges_to_index(settings: Settings, index: EventIndex) -> dict[Partition, OffsetRange]:
    """Return the ranges of the log that are not indexed yet.

    Raises aiokafka.errors.KafkaError, asyncpg.PostgresError.
    """
    indexed = await index.next_offsets()
    limits = await bounds(settings, INPUTS)
    return {
        partition: (max(indexed.get(partition, 0), limits.first[partition]), end)
        for partition, end in limits.end.items()
        if indexed.get(partition, 0) < end
    }


async def catch_up(settings: Settings, index: EventIndex, on_progress: OnProgress = no_progress) -> int:
    """Index the log up to its present end; return the number of records that were indexed.

    Raises aiokafka.errors.KafkaError, asyncpg.PostgresError, ForeignIndexError.
    """
    ranges = await ranges_to_index(settings, index)
    count, total = 0, sum(end - first for first, end in ranges.values())
    async for record_range in read_ranges(settings, ranges):
        await index.add(record_range)
        count += len(record_range.records)
        on_progress(count, total)
    return count


async def follow(settings: Settings, pool: asyncpg.Pool, health: Health) -> None:
    """Add new records to the index until cancelled. If that is not possible, /readyz shows why."""
    index: EventIndex | None = None
    while True:
        try:
            index = index or EventIndex(pool, await log_topics.cluster_id(settings))
            await catch_up(settings, index)
            health.ready("index")
        except (*POSTGRES_AWAY, KafkaError, ForeignIndexError) as error:
            if not is_slow(error):
                health.not_ready("index", f"{type(error).__name__}: {error}")
            _log.warning("indexing events failed; retrying", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(_INTERVAL)
