"""Tables as of a position equal the live tables at that time, and a killed rebuild repeats little work."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everyrun.log import topics
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.log.reading import Poll, bounds, read_ranges
from everyrun.projection.feed import Feed
from everyrun.projection.offsets import INPUTS
from everyrun.replay.audit.as_of import SCHEMA, as_of
from everyrun.replay.errors import LogPositionError
from everyrun.replay.log_position import resolve_offsets
from everyrun.replay.rebuild.engine import Engine, applied_offsets, tables_pool
from everyrun.replay.rebuild.rebuild_schema import DEFAULT_SCHEMA
from everyrun.settings import Settings
from tests.integration.test_rebuild import contents, quiet
from tests.records import a_world, apart

pytestmark = pytest.mark.stack


async def append(settings: Settings, records: list[Record]) -> None:
    async with Producer(settings) as producer:
        await producer.append(records)


def rows(tables: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the rows without partitions at offset 0: they may or may not have a row."""
    return tables | {"applied_offsets": [row for row in tables["applied_offsets"] if ",0," not in row]}


async def test_as_of_equals_a_snapshot_taken_at_the_time(settings: Settings) -> None:
    """Copy the live tables and their offsets at ten random times, then compare with as-of."""
    chance = random.Random(7)
    for seed in (1, 2):
        await append(settings, apart(a_world(random.Random(seed), chunks=5, inputs=8), str(seed)))
    ends = await resolve_offsets(settings, None)
    cluster_id = await topics.identity(settings)
    snapshots = []
    reached: dict = {}
    async with tables_pool(settings, "everyrun") as pool:
        for _ in range(10):
            goal = {p: min(end, reached.get(p, 0) + chance.randint(0, max(end // 4, 2))) for p, end in ends.items()}
            await Engine(settings, pool, cluster_id).run(reached, goal)
            reached = await applied_offsets(pool)
            snapshots.append((reached, await contents(settings, "everyrun")))
    assert len({str(tables["results"]) for _, tables in snapshots}) > 5
    for offsets, tables in [snapshots[4], *snapshots]:
        async with as_of(settings, offsets, quiet):
            assert rows(await contents(settings, SCHEMA)) == rows(tables)
    with pytest.raises(LogPositionError, match="ends at"):
        async with as_of(settings, {("runs", 0): ends["runs", 0] + 1}, quiet):
            pass


async def test_as_of_applies_a_small_log_in_few_transactions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction per ten records took minutes, while a person waits."""
    await append(settings, apart(a_world(random.Random(5), chunks=25, inputs=20), "1"))
    ends = await resolve_offsets(settings, None)
    applied, as_before = [], Feed.apply_once

    async def counted(feed: Feed, polls: Sequence[Poll]) -> None:
        applied.append(sum(len(poll.records) for poll in polls))
        await as_before(feed, polls)

    monkeypatch.setattr(Feed, "apply_once", counted)
    async with as_of(settings, ends, quiet):
        pass
    assert sum(applied) == sum(ends.values()) > 300
    # Each of the two lanes has one for the batches and one for the other topics.
    assert len(applied) <= 4


async def test_a_time_is_compared_with_the_time_of_append(settings: Settings) -> None:
    await append(settings, apart(a_world(random.Random(1)), "1"))
    ends = (await bounds(settings, INPUTS)).end
    told = 0
    async for stretch in read_ranges(settings, {p: (0, end) for p, end in ends.items()}):
        told = max([told, *(record.timestamp for record in stretch.records)])
    while time.time() * 1000 <= told + 1:
        await asyncio.sleep(0.001)
    await append(settings, apart(a_world(random.Random(2)), "2"))
    async with as_of(settings, datetime.fromtimestamp(told / 1000, UTC), quiet) as found:
        assert found.offsets == ends
        (submission,) = [
            r[0] for r in await found.connection.fetch("select submission_id from submissions where priority = 90")
        ]
        report = await found.report(submission)
        assert report is not None
        assert sum(report["by_status"].values()) == report["expected"] == 12
        assert report["balanced"]
        results = [row async for row in found.results(submission)]
        assert {row["input_id"] for row in results} <= {f"{submission}:{n}" for n in range(1, 13)}
        row = await found.row(results[0]["input_id"])
        assert row is not None
        assert {name: row[name] for name in results[0]} == results[0]
        assert await found.row("sub_2_1:1") is None
        assert await found.report("sub_unknown") is None
    async with as_of(settings, datetime(2000, 1, 1, tzinfo=UTC), quiet) as found:
        assert not any(found.offsets.values())
        assert await found.report(submission) is None


KILLED = """
import asyncio, os, sys
from everyrun.log.reading import RecordRange
from everyrun.replay.rebuild import engine
from everyrun.replay.log_position import resolve_offsets
from everyrun.replay.rebuild.rebuild_schema import rebuild
from everyrun.settings import load

read = open(sys.argv[1], "a")
most = int(sys.argv[2])

class Counted(engine.RebuildProgress):
    # Writes down every record that is read, and kills the process after the given number of applied records.
    def __setattr__(self, name, value):
        if name == "read" and value:
            read.write(f"{value - self.read}\\n")
            read.flush()
        super().__setattr__(name, value)
        if name == "applied" and value > most:
            os.kill(os.getpid(), 9)

engine.RebuildProgress = Counted

async def main():
    settings = load()
    await rebuild(settings, await resolve_offsets(settings, None), lambda _: None)

asyncio.run(main())
"""


async def test_a_rebuild_killed_three_times_is_correct_and_reads_little_twice(
    settings: Settings, tmp_path: Path
) -> None:
    for seed in range(12):
        await append(settings, apart(a_world(random.Random(seed), chunks=8, inputs=10), str(seed)))
    total = sum((await resolve_offsets(settings, None)).values())
    read = tmp_path / "read"
    env = {
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
    }
    for most, status in ((total // 5, -9), (total // 5, -9), (total // 5, -9), (total, 0)):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(read), str(most), env=env)
        assert await process.wait() == status
    assert sum(map(int, read.read_text().split())) <= 1.1 * total
    ends = await resolve_offsets(settings, None)
    async with tables_pool(settings, "everyrun") as pool:
        await Engine(settings, pool, await topics.identity(settings)).run({}, ends)
    assert rows(await contents(settings, DEFAULT_SCHEMA)) == rows(await contents(settings, "everyrun"))
