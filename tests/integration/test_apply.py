"""The tables are a function of the events, whatever their order, grouping and repetition."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.reading import Poll
from everyrun.projection.apply import apply
from everyrun.projection.decode import run_of
from everyrun.projection.offsets import ForeignLogError, GapError
from everyrun.projection.rules.merge import merge
from everyrun.projection.rules.run_selection import version_of_run
from tests.integration.tables import TABLES, connect, contents
from tests.records import INSTALLATION, LOG, a_world, an_input, batch_event, in_polls, lay_out, run_event


async def nothing_aside(poison):
    assert not poison, poison


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(database)
    yield connection
    await connection.close()


async def emptied(connection: asyncpg.Connection) -> None:
    await connection.execute(f"truncate {', '.join((*TABLES, 'applied_offsets'))}")


async def feed(connection: asyncpg.Connection, records: list, chance: random.Random) -> None:
    for group in in_polls(lay_out(records), chance):
        await apply(connection, group, LOG, nothing_aside)


@pytest.mark.parametrize("seed", range(25))
async def test_the_tables_do_not_depend_on_order_or_polls(connection, seed):
    chance = random.Random(seed)
    world = a_world(chance)
    found = []
    for _ in range(4):
        await emptied(connection)
        await feed(connection, world, chance)
        found.append(await contents(connection))
        for line in await connection.fetch("select * from report where not balanced"):
            pytest.fail(f"not balanced: {dict(line)}")
        chance.shuffle(world)
    for other in found[1:]:
        for table in TABLES:
            assert other[table] == found[0][table], table


@pytest.mark.parametrize("seed", range(10))
async def test_the_tables_agree_with_merge_and_select(connection, seed):
    chance = random.Random(1000 + seed)
    world = a_world(chance)
    await feed(connection, world, chance)
    runs: dict[str, object] = {}
    for logged in (r for (topic, _), records in lay_out(world).items() if topic == "runs" for r in records):
        run = run_of(logged)
        runs[run.run_id] = merge(runs[run.run_id], run) if run.run_id in runs else run
    batches = {r["batch_id"]: (r["chunk"], r["attempt"]) for r in await connection.fetch("select * from batches")}
    of_input: dict[str, list] = {}
    for run in runs.values():
        if batch_of_another(run):
            continue
        if run.binding is not None and batches.get(run.batch_id) == (run.binding.chunk, run.binding.attempt):
            of_input.setdefault(run.binding.input_id, []).append(run)
    rows = await connection.fetch(
        "select input_id, run_id, status, run, version from results where run_id is not null and chunk !~ '^sub_of'"
    )
    assert {row["input_id"] for row in rows} == set(of_input)
    for row in rows:
        current = max(of_input[row["input_id"]], key=lambda r: version_of_run(r.run_id, r.final, r.order))
        assert (row["run_id"], row["status"]) == (current.run_id, current.status)
        assert row["version"] == version_of_run(current.run_id, current.final, current.order)
    others = await connection.fetch("select run_id, status from other_runs where chunk !~ '^sub_of'")
    assert {row["run_id"]: row["status"] for row in others} == {
        run.run_id: run.status
        for seen in of_input.values()
        for run in seen
        if run.run_id not in {row["run_id"] for row in rows}
    }


def batch_of_another(run) -> bool:
    return (run.batch_id or "").startswith("batch_other")


async def test_records_are_applied_once_and_gaps_are_refused(connection):
    world = a_world(random.Random(5))
    log = lay_out(world)
    position = max(log, key=lambda p: len(log[p]))
    poll = Poll(*position, log[position][:6])
    first = await apply(connection, [poll], LOG, nothing_aside)
    before = await contents(connection)
    again = await apply(connection, [poll], LOG, nothing_aside)
    assert await contents(connection) == before
    assert not again.states
    assert again.inputs | again.runs | {c for c, _ in again.attempts}
    assert first is not None
    with pytest.raises(GapError) as gap:
        await apply(connection, [Poll(*position, log[position][8:])], LOG, nothing_aside)
    assert gap.value.gaps == {position: 6}
    with pytest.raises(ForeignLogError):
        await apply(connection, [Poll(*position, log[position][6:])], LOG._replace(cluster_id="another"), nothing_aside)
    with pytest.raises(ForeignLogError, match="2 partitions, but runs now has 16"):
        await apply(connection, [Poll(*position, log[position][6:])], LOG._replace(partitions=16), nothing_aside)
    overlapping = Poll(*position, log[position][3:])
    await apply(connection, [overlapping], LOG, nothing_aside)
    assert await connection.fetchval(
        "select next_offset from applied_offsets where (topic, partition) = ($1, $2)", *position
    ) == len(log[position])


async def test_no_table_shows_the_reserved_key(connection):
    chance = random.Random(3)
    await feed(connection, a_world(chance), chance)
    for table in TABLES:
        for row in await connection.fetch(f"select t::text from {table} t"):
            assert "everyrun:input" not in row[0]


def a_registered(*metadata: dict) -> tuple[list[events.Input], Record]:
    given = [msgspec.structs.replace(an_input("sub_r", n), metadata=m) for n, m in enumerate(metadata, 1)]
    more = {"batch_id": "batch_r", "inputs": given}
    return given, batch_event(events.BatchRegistered, "sub_r", "sub_r.c00001", 1, 1, **more)


@pytest.mark.parametrize("seed", range(12))
async def test_metadata_changed_to_that_of_another_input_moves_no_run(connection, seed):
    """The first metadata that matches an input decides, in the order of the log, whatever the polls."""
    chance = random.Random(seed)
    _, brought = a_registered({"n": 1}, {"n": 2}, {"twin": 1}, {"twin": 1})
    seen = [
        run_event("run_a", "batch_r", "PROCESSING", 2, key=None, metadata={"n": "unknown yet"}),
        run_event("run_a", "batch_r", "PROCESSING", 3, key=None, metadata={"n": 1.0, "extend:usage_tags": ["x"]}),
        run_event("run_a", "batch_r", "PROCESSED", 5, key=None, metadata={"n": 2}, end=4),
        run_event("run_twin", "batch_r", "PROCESSED", 5, key=None, metadata={"twin": 1}, end=4),
        run_event("run_twin", "batch_r", "PROCESSED", 7, key=None, metadata={"n": 2}, end=6),
        run_event("run_none", "batch_r", "PROCESSED", 7, key=None, metadata={"n": 3}, end=6),
    ]
    await feed(connection, [brought, *seen] if seed % 2 else [*seen, brought], chance)
    rows = {row["input_id"]: row for row in await connection.fetch("select * from results")}
    assert {i: (row["run_id"], row["status"]) for i, row in rows.items()} == {
        "sub_r:1": ("run_a", "PROCESSED"),
        "sub_r:2": (None, "SUBMITTED"),
        "sub_r:3": (None, "SUBMITTED"),
        "sub_r:4": (None, "SUBMITTED"),
    }
    unmatched = await connection.fetch("select run_id, reason, cardinality(fingerprints) as seen from unmatched_runs")
    assert {row["run_id"]: (row["reason"], row["seen"]) for row in unmatched} == {
        "run_twin": ("ambiguous_metadata", 2),
        "run_none": ("metadata_unknown", 1),
    }


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
async def test_a_run_is_bound_once_whatever_its_key_becomes(connection, batch_first, at_once):
    """A run seen with the key of input 1, later with that of input 2, stays in the row of input 1."""
    given = [an_input("sub_1", n) for n in (1, 2)]
    brought = batch_event(events.BatchSubmitted, "sub_1", "sub_1.c1", 1, 1, batch_id="batch_1", inputs=given)
    keys = [Reserved(INSTALLATION, i.input_id, "sub_1.c1", 1, i.position) for i in given]
    seen = [
        run_event("run_a", "batch_1", "PROCESSING", 2, key=keys[0]),
        run_event("run_a", "batch_1", "PROCESSED", 4, key=keys[1], end=3),
    ]
    log = lay_out([brought, *seen])
    polls = [Poll(*position, records) for position, records in log.items()]
    groups = [polls] if at_once else [[Poll(*poll[:2], [one])] for poll in polls for one in poll.records]
    for group in groups if batch_first else [*groups[1:], groups[0]]:
        await apply(connection, group, LOG, nothing_aside)
    rows = await connection.fetch("select input_id, run_id, status from results order by input_id")
    assert [tuple(row) for row in rows] == [("sub_1:1", "run_a", "PROCESSED"), ("sub_1:2", None, "SUBMITTED")]
    report = await connection.fetchrow("select * from report")
    assert (report["runs_observed"], report["balanced"]) == (1, True)


@pytest.mark.parametrize("seed", range(6))
async def test_a_batch_id_missing_from_one_observation_comes_from_another(connection, seed):
    chance = random.Random(seed)
    given = [an_input("sub_1", 1)]
    brought = batch_event(events.BatchSubmitted, "sub_1", "sub_1.c1", 1, 1, batch_id="batch_1", inputs=given)
    key = Reserved(INSTALLATION, "sub_1:1", "sub_1.c1", 1, 1)
    seen = [
        run_event("run_a", "batch_1", "PROCESSING", 2, key=key),
        run_event("run_a", None, "PROCESSED", 4, key=key, end=3),
        run_event("run_a", None, "PROCESSED", 4, key=None, end=3, source="poll"),
        brought,
    ]
    chance.shuffle(seen)
    await feed(connection, seen, chance)
    row = await connection.fetchrow("select run_id, batch_id, status from results")
    assert tuple(row) == ("run_a", "batch_1", "PROCESSED")
    assert not await connection.fetchval("select count(*) from unmatched_runs")


async def test_text_that_postgres_refuses_is_stored_with_replacements(connection):
    _, brought = a_registered({"n": 1})
    text = {"n": 1, "extend:usage_tags": ["a\x00b"]}
    more = {"failureMessage": "cut\x00off", "stepRuns": [{"text": "\x00"}]}
    await feed(
        connection,
        [brought, run_event("run_a", "batch_r", "FAILED", 5, key=None, metadata=text, end=4, **more)],
        random.Random(1),
    )
    row = await connection.fetchrow("select *, run -> 'stepRuns' -> 0 ->> 'text' as step from results")
    assert (row["run_id"], row["status"], row["failure_message"], row["step"]) == (
        "run_a",
        "FAILED",
        "cut\ufffdoff",
        "\ufffd",
    )


async def test_a_second_registration_of_a_batch_is_refused_as_a_whole(connection):
    """A lost queue may allow two registrations of one batch: the first in the log counts."""
    _, first = a_registered({"n": 1})
    other = batch_event(
        events.BatchRegistered, "sub_o", "sub_o.c00001", 1, 2, batch_id="batch_r", inputs=[an_input("sub_o", 1)]
    )
    await feed(connection, [first], random.Random(1))
    before = await contents(connection)
    log = lay_out([first, other])
    ((position, records),) = log.items()
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await apply(connection, [Poll(*position, records[1:])], LOG, nothing_aside)
    assert refused.value.constraint_name == "batches_batch_id_key"
    assert await contents(connection) == before
