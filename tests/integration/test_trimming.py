"""Foreign runs lose their content after a time, by an event."""

from __future__ import annotations

import random

import asyncpg
import msgspec
import pytest

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.projection.apply import apply
from everyrun.reconciler.run_fetcher import RunFetcher
from everyrun.reconciler.trimming import Trimming
from everyrun.settings import Settings
from tests.integration.tables import TABLES, connect, contents
from tests.memory_log import MemoryLog
from tests.records import LOG, PARTITIONS, a_registered_batch, an_input, batch_event, in_polls, lay_out, run_event

_SIZE = 5_000


async def _nothing_aside(poison: object) -> None:
    assert not poison


class World:
    """Tables of a growing log, with the reconciler's trimming."""

    def __init__(self, dsn: str, connection: asyncpg.Connection, pool: asyncpg.Pool) -> None:
        self.dsn, self.connection, self.pool, self.log = dsn, connection, pool, MemoryLog()
        settings = Settings(postgres_dsn=dsn, foreign_runs_kept=0)
        self.trimming = Trimming(settings, pool, self.log)

    async def project(self, chance: random.Random) -> dict[str, list[str]]:
        """All tables from the log so far, in some grouping."""
        await self.connection.execute(f"truncate {', '.join((*TABLES, 'applied_offsets'))}")
        for group in in_polls(lay_out(self.log.records), chance):
            await apply(self.connection, group, LOG, _nothing_aside)
        return await contents(self.connection)


@pytest.fixture
async def world(database: str):
    connection = await connect(database)
    async with asyncpg.create_pool(database, min_size=1, max_size=2) as pool:
        yield World(database, connection, pool)
    await connection.close()


async def test_foreign_run_keeps_only_its_head(world: World):
    ours = await world.pool.fetchval("select installation from everyrun_queue.installation")
    theirs = Reserved("inst_other", "their:1", "their.c1", 1, 1)
    mine = Reserved(ours, "sub_1:1", "sub_1.c1", 1, 1)
    end = {"end": 8.0, "size": _SIZE}
    world.log.records += [
        run_event("run_single", None, "PROCESSED", 9, key=None, **end),
        run_event("run_keyless", "batch_x", "FAILED", 9, key=None, **end),
        run_event("run_theirs", "batch_y", "PROCESSED", 9, key=theirs, **end),
        run_event("run_ours", "batch_z", "PROCESSED", 9, key=mine, **end),
    ]
    await world.project(random.Random(1))
    heads = (
        "select run_id, status, batch_id, failure_reason, credits, settled_at, metadata, input_id, bindings, "
        "fingerprints from unmatched_runs order by run_id"
    )
    before = await world.connection.fetch(heads)

    assert await world.trimming.trim() == 3
    await world.project(random.Random(2))
    assert await world.connection.fetch(heads) == before
    sizes = dict(await world.connection.fetch("select run_id, length(run::text) from unmatched_runs"))
    assert sizes.pop("run_ours") > _SIZE
    assert all(size < 600 for size in sizes.values()), sizes
    assert await world.trimming.trim() == 0

    # A repeated webhook does not restore the content. A later state has its content, and is trimmed later.
    world.log.records.append(world.log.records[0])
    world.log.records.append(run_event("run_keyless", "batch_x", "PROCESSED", 30, key=None, end=29, size=_SIZE))
    found = await world.project(random.Random(3))
    sizes = dict(await world.connection.fetch("select run_id, length(run::text) from unmatched_runs"))
    assert (sizes["run_single"] < 600, sizes["run_keyless"] > _SIZE) == (True, True)
    for seed in range(4, 10):
        assert await world.project(random.Random(seed)) == found
    assert await world.trimming.trim() == 1


async def test_trimming_events_are_in_the_partition_of_the_run(world: World):
    chance = random.Random(5)
    world.log.records += [r for r in a_registered_batch(chance, "1") if r.topic == "runs"]
    await world.project(chance)
    assert await world.trimming.trim() > 0
    where: dict[str, set[int]] = {}
    for (_, partition), records in lay_out(world.log.records, PARTITIONS).items():
        for one in records:
            where.setdefault(msgspec.json.decode(one.value)["run"]["id"], set()).add(partition)
    assert all(len(partitions) == 1 for partitions in where.values()), where


async def test_trimmed_run_is_fetched_again_if_it_turns_out_to_be_ours(world: World):
    """After its batch is registered, the row has only the head, so the reconciler fetches the run again."""
    given = [msgspec.structs.replace(an_input("sub_r", 1), metadata={"n": 1})]
    seen = {"key": None, "metadata": {"n": 1}, "end": 8.0, "size": _SIZE}
    world.log.records.append(run_event("run_a", "batch_r", "PROCESSED", 9, **seen))
    await world.project(random.Random(1))
    await world.trimming.trim()
    brought = batch_event(events.BatchRegistered, "sub_r", "sub_r.c00001", 1, 1, batch_id="batch_r", inputs=given)
    for place in (0, len(world.log.records)):
        records = list(world.log.records)
        world.log.records.insert(place, brought)
        await world.project(random.Random(place))
        gets = RunFetcher(world.pool, None, world.log)  # type: ignore[arg-type]
        assert await world.connection.fetchval("select run_id from results") == "run_a"
        assert await gets.known(["run_a"]) == {}
        world.log.records.append(run_event("run_a", "batch_r", "PROCESSED", 40, source="poll", **seen))
        await world.project(random.Random(place))
        assert set(await gets.known(["run_a"])) == {"run_a"}
        assert await world.connection.fetchval("select length(run::text) from results") > _SIZE
        world.log.records[:] = records
