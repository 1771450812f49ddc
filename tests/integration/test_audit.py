"""An audit finds every kind of tampering with tables, offsets and log, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from everyrun.log import events, topics
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.replay.audit.compare import RowSelection
from everyrun.replay.audit.table_audit import SCHEMA, AuditResult, audit
from everyrun.replay.log_position import resolve_offsets
from everyrun.replay.rebuild.engine import Engine, applied_offsets, tables_connection, tables_pool
from everyrun.settings import Settings
from tests.records import a_world, apart, at, batch_event, run_event

pytestmark = pytest.mark.stack

TABLES = ("batches", "results", "other_runs", "unmatched_runs", "applied_offsets")


def quiet(_progress: object) -> None:
    pass


async def append(settings: Settings, *records: Record) -> None:
    """Append to the log, apply it and commit the offsets, as the processor does."""
    async with Producer(settings) as producer:
        await producer.append(records)
    async with tables_pool(settings, "everyrun") as pool:
        ends = await resolve_offsets(settings, None)
        await Engine(settings, pool, await topics.identity(settings)).run(await applied_offsets(pool), ends)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap,
        group_id=settings.topic_prefix + "processor",
        enable_auto_commit=False,
    )
    consumer.assign([TopicPartition(settings.topic(topic), number) for topic, number in ends])
    await consumer.start()
    try:
        await consumer.commit({TopicPartition(settings.topic(t), n): end for (t, n), end in ends.items() if end})
    finally:
        await consumer.stop()


@pytest.fixture
async def live(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection to live tables, of which the schema ``kept`` has a copy."""
    for seed in (3, 4):
        await append(settings, *apart(a_world(random.Random(seed), chunks=5, inputs=6), str(seed)))
    async with tables_connection(settings, "everyrun") as connection:
        await connection.execute("create schema kept")
        for table in TABLES:
            await connection.execute(f"create table kept.{table} as table {table}")
        yield connection


async def restore(connection: asyncpg.Connection) -> None:
    for table in TABLES:
        await connection.execute(f"truncate {table}; insert into {table} select * from kept.{table}")


class Tampering(NamedTuple):
    what: str
    sql: str
    table: str
    column: str


#: Each changes a row of its own: {row} is an input with a run.
OF_RESULTS = (
    Tampering("a status", "update results set status = 'LOST' where input_id = {row}", "results", "status"),
    Tampering(
        "an output",
        "update results set run = jsonb_set(run, '{{usage,credits}}', '7') where input_id = {row}",
        "results",
        "run.usage.credits",
    ),
    Tampering(
        "a metadata value",
        "update results set metadata = jsonb_set(metadata, '{{row}}', '99') where input_id = {row}",
        "results",
        "metadata.row",
    ),
    Tampering("a row removed", "delete from results where input_id = {row}", "results", "*"),
    Tampering(
        "a row moved to another batch",
        "update results r set batch_id = (select max(batch_id) from batches where batch_id <> r.batch_id)"
        " where input_id = {row}",
        "results",
        "batch_id",
    ),
    Tampering(
        "another run put in", "update results set run_id = 'run_mine' where input_id = {row}", "results", "run_id"
    ),
)
OF_TABLES = (
    Tampering(
        "a row added",
        "insert into results (input_id, external_id, submission_id, position, chunk, attempt, file, metadata, status,"
        " version) values ('added', 'x', 'sub_3', 1, 'c', 1, '{}', '{}', 'PROCESSED', '3')",
        "results",
        "*",
    ),
    Tampering(
        "a count off",
        "update batches set runs_observed = runs_observed + 1 where chunk = (select min(chunk) from batches)",
        "batches",
        "runs_observed",
    ),
    Tampering(
        "counts by status",
        "update batches set counts = '{\"LOST\": 1}' where chunk = (select min(chunk) from batches)",
        "batches",
        "counts.LOST",
    ),
    Tampering("a duplicate removed", "delete from other_runs", "other_runs", "*"),
    Tampering("an unmatched run removed", "delete from unmatched_runs", "unmatched_runs", "*"),
    Tampering(
        "tables of another log", "update applied_offsets set cluster_id = 'other'", "applied_offsets", "cluster_id"
    ),
)
OFFSET = (
    "update applied_offsets set next_offset = next_offset + ({by}) where (topic, partition) ="
    " (select topic, partition from applied_offsets where next_offset > 1 order by 1 desc, 2 limit 1)"
)


def columns(found: AuditResult) -> list[tuple[str, str]]:
    return [(difference.table, difference.column) for difference in found.differences]


async def test_audit_finds_every_tampering_and_nothing_else(settings: Settings, live: asyncpg.Connection) -> None:
    untouched = await audit(settings, quiet)
    assert untouched.agrees, untouched
    assert untouched.rows["results"] == await live.fetchval("select count(*) from results") > 20
    inputs = [r[0] for r in await live.fetch("select input_id from results where run_id is not null order by 1")]
    for row, tampering in zip(inputs, OF_RESULTS, strict=False):
        await live.execute(tampering.sql.format(row=f"'{row}'"))
    for tampering in OF_TABLES:
        await live.execute(tampering.sql)
    found = await audit(settings, quiet)
    assert not found.findings
    for row, tampering in zip(inputs, OF_RESULTS, strict=False):
        of_row = [d.column for d in found.differences if d.key == row and d.table == "results"]
        assert of_row == [tampering.column], tampering.what
    for tampering in OF_TABLES:
        assert (tampering.table, tampering.column) in columns(found), tampering.what
    assert [d.key for d in found.differences if d.table == "results"] == sorted([*inputs[: len(OF_RESULTS)], "added"])
    for by in (1, -1):
        await restore(live)
        await live.execute(OFFSET.format(by=by))
        assert ("applied_offsets", "next_offset") in columns(await audit(settings, quiet)), by
    await restore(live)
    after = await audit(settings, quiet)
    assert after.agrees, after
    assert await live.fetchval("select to_regnamespace($1)", SCHEMA) is None


async def test_a_selection_restricts_the_audit(settings: Settings, live: asyncpg.Connection) -> None:
    row = await live.fetchrow("select * from results where batch_id is not null and run_id is not null limit 1")
    other = await live.fetchrow("select * from results where submission_id <> $1 limit 1", row["submission_id"])
    await live.execute("update results set status = 'LOST', batch_id = 'batch_x' where input_id = $1", row["input_id"])
    mine = RowSelection(submission=row["submission_id"])
    assert columns(await audit(settings, quiet, mine)) == [("results", "batch_id"), ("results", "status")]
    of_batch = RowSelection(batch=row["batch_id"], since=row["observed_at"])
    assert len(columns(await audit(settings, quiet, of_batch))) == 2
    first = min(row["observed_at"], row["settled_at"] or row["observed_at"])
    assert (await audit(settings, quiet, RowSelection(submission=other["submission_id"], until=first))).agrees


async def test_an_attempt_that_was_claimed_and_never_sent_is_no_defect(
    settings: Settings, live: asyncpg.Connection
) -> None:
    """The dispatcher died before it wrote batch-requested: the log only has the doubt and the decision to resend."""
    (submission_id,) = await live.fetchrow("select submission_id from submissions limit 1")
    chunk = f"{submission_id}.c9"
    doubt = batch_event(events.BatchInDoubt, submission_id, chunk, 1, 5)
    given_up = batch_event(events.DoubtResent, submission_id, chunk, 1, 6)
    await append(settings, doubt, given_up)
    assert (await audit(settings, quiet)).agrees


async def test_audit_finds_defects_of_the_log(settings: Settings, live: asyncpg.Connection) -> None:
    given = {"batch_id": "batch_lonely", "inputs": []}
    lonely = batch_event(events.BatchSubmitted, "sub_unsaid", "sub_unsaid.c1", 1, 5, **given)
    one, other = (run_event("run_x", "batch_x", "PROCESSED", 5, key=None, end=4, row=n) for n in (1, 2))
    again = batch_event(events.BatchRequested, "sub_unsaid", "sub_unsaid.c2", 1, 6, inputs=[])
    later = again._replace(value=again.value.replace(at(6).encode(), at(7).encode()))
    assert later.value != again.value
    await append(settings, lonely, one, other, one, again, later)
    found = await audit(settings, quiet)
    assert not found.differences
    whats = sorted(finding.what for finding in found.findings)
    assert whats == [
        "an attempt without batch-requested",
        "attempts of a submission without submission-accepted",
        "one event id with different contents",
    ], found.findings
