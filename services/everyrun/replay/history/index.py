"""The index of places: made from the log, followed by the replay service, asked by history."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.errors import EveryrunError
from everyrun.health import Health
from everyrun.log import topics as log_topics
from everyrun.log.reading import OffsetRange, Partition, RecordRange, bounds, read_ranges
from everyrun.replay.history.event_index_keys import TOPICS, Place, number_of, said_by
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "index.sql")
_EVERY = 5.0


class ForeignIndexError(EveryrunError):
    """The index was made from another Kafka cluster's log."""


class Index:
    """The index in one database, of one Kafka cluster's log."""

    def __init__(self, pool: asyncpg.Pool, cluster_id: str) -> None:
        self._pool = pool
        self._cluster_id = cluster_id

    async def positions(self) -> dict[Partition, int]:
        """How far each partition is indexed; empty where there is no index, or one of another cluster's log."""
        if not await self._pool.fetchval(_sql["is_there"]):
            return {}
        rows = await self._pool.fetch(_sql["positions"])
        return {(r["topic"], r["partition"]): r["next_offset"] for r in rows if r["cluster_id"] == self._cluster_id}

    async def find(self, ids: Iterable[str], batches: Iterable[str] = ()) -> set[Place]:
        """The places that may speak of the ids, and those of observations of the batches' runs."""
        if not await self._pool.fetchval(_sql["is_there"]):
            return set()
        wanted = [number_of(identifier) for identifier in ids]
        rows = await self._pool.fetch(_sql["find"], wanted, [number_of(batch) for batch in batches])
        return {Place.of(row["place"]) for row in rows}

    async def add(self, stretch: RecordRange) -> int:
        """Take a stretch in; how many places were new. What is indexed already is left out, in one transaction."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("set local synchronous_commit = off")
            place = (stretch.topic, stretch.partition)
            await connection.execute(_sql["know_partition"], *place, self._cluster_id)
            row = await connection.fetchrow(_sql["lock_position"], *place)
            if row is None or row["cluster_id"] != self._cluster_id:
                raise ForeignIndexError(
                    "everyrun_index was made from another Kafka cluster: drop schema everyrun_index"
                )
            rows, batches = entries(stretch, row["next_offset"])
            await connection.copy_records_to_table(
                "places", schema_name="everyrun_index", columns=["id", "place"], records=rows
            )
            if batches:
                await connection.copy_records_to_table(
                    "batch_places", schema_name="everyrun_index", columns=["id", "places"], records=batches.items()
                )
            if stretch.next_offset > row["next_offset"]:
                await connection.execute(_sql["move_position"], *place, stretch.next_offset)
        return len(rows)


def entries(stretch: RecordRange, start: int) -> tuple[list[tuple[int, int]], Mapping[int, list[int]]]:
    """The rows of a stretch from offset ``start`` on: (id, place) each, and the places of each batch's observations."""
    rows: list[tuple[int, int]] = []
    batches: dict[int, list[int]] = defaultdict(list)
    first = Place(stretch.topic, stretch.partition, 0).number()
    for record in stretch.records:
        if record.offset < start:
            continue
        said = said_by(stretch.topic, record)
        place = first | record.offset
        rows += [(number_of(identifier), place) for identifier in said.ids]
        if said.batch is not None:
            batches[number_of(said.batch)].append(place)
    return rows, batches


async def to_index(settings: Settings, index: Index) -> dict[Partition, OffsetRange]:
    """What of the log is not indexed yet. Raises aiokafka.errors.KafkaError, asyncpg.PostgresError."""
    done = await index.positions()
    limits = await bounds(settings, TOPICS)
    return {
        place: (max(done.get(place, 0), limits.first[place]), end)
        for place, end in limits.end.items()
        if done.get(place, 0) < end
    }


async def catch_up(
    settings: Settings, index: Index, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Index what there is now; how many records.

    Raises aiokafka.errors.KafkaError, asyncpg.PostgresError, and ForeignIndexError.
    """
    ranges = await to_index(settings, index)
    count, total = 0, sum(end - first for first, end in ranges.values())
    async for stretch in read_ranges(settings, ranges):
        await index.add(stretch)
        count += len(stretch.records)
        progress(count, total)
    return count


async def follow(settings: Settings, pool: asyncpg.Pool, health: Health) -> None:
    """Keep the index near the end of the log, for ever; says in readyz what is in the way."""
    index: Index | None = None
    while True:
        try:
            index = index or Index(pool, await log_topics.cluster_id(settings))
            await catch_up(settings, index)
            health.ready("index")
        except (*POSTGRES_AWAY, KafkaError, ForeignIndexError) as error:
            if not is_slow(error):
                health.not_ready("index", f"{type(error).__name__}: {error}")
            _log.warning("the index waits", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(_EVERY)
