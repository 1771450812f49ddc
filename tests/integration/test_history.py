"""Histories list every event that touched an id and what it changed, with and without the index."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import record
from everyrun.log.producer import Producer
from everyrun.log.reading import Poll, bounds, read_ranges
from everyrun.log.topics import cluster_id, identity
from everyrun.projection import tables
from everyrun.projection.apply import apply
from everyrun.projection.offsets import INPUTS
from everyrun.replay.api import replay_api
from everyrun.replay.history import event_search
from everyrun.replay.history.event_index import EventIndex, ForeignIndexError, catch_up
from everyrun.replay.history.event_search import IndexBehindError
from everyrun.replay.history.historian import NoHistoryError, historian
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.test_replay_jobs import TOKEN
from tests.records import INSTALLATION, a_world, an_input, at, batch_event, run_event
from tests.stack.up import everyrun


async def append(settings: Settings, records: list[Any]) -> None:
    """Append records one after another: the log then has them in this order."""
    async with Producer(settings) as producer:
        for one in records:
            await producer.append([one])
            await asyncio.sleep(0.002)


async def applied(settings: Settings) -> None:
    """Apply the log to the live tables, as the processor does."""
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(), server_settings={"search_path": "everyrun"}
    )
    await tables.setup_connection(connection)
    done = {
        (r["topic"], r["partition"]): r["next_offset"] for r in await connection.fetch("select * from applied_offsets")
    }
    limits = await bounds(settings, INPUTS)
    async for stretch in read_ranges(settings, {p: (done.get(p, 0), end) for p, end in limits.end.items()}):
        if stretch.records:
            poll = Poll(stretch.topic, stretch.partition, stretch.records)
            await apply(connection, [poll], await identity(settings), _nothing)
    await connection.close()


async def _nothing(poison: Any) -> None:
    assert not poison


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(settings.postgres_dsn.get_secret_value(), min_size=1, max_size=3) as pool:
        yield pool


def a_story() -> list[Any]:
    """The events of an input that is returned, sent again, fails, and gets a second run that is processed."""
    given = [an_input("sub_1", n) for n in (1, 2)]
    accepted = events.SubmissionAccepted(
        submission_id="sub_1",
        workflow_id="workflow_1",
        workflow_version=None,
        priority=90,
        expected=2,
        batches=1,
        idempotency_key="key",
        content_hash="00" * 32,
        created_at=at(0),
    )
    key = [Reserved(INSTALLATION, i.input_id, "sub_1.c1", 2, i.position) for i in given]
    return [
        record("batches", accepted, key="sub_1", id="sub_1", source="/everyrun/submission", time=at(0)),
        batch_event(events.BatchRequested, "sub_1", "sub_1.c1", 1, 1, inputs=given),
        batch_event(events.BatchReturned, "sub_1", "sub_1.c1", 1, 2, reason="429"),
        batch_event(events.BatchRequested, "sub_1", "sub_1.c1", 2, 3, inputs=given),
        run_event("run_b", "batch_1", "PROCESSING", 4, key=key[0]),
        batch_event(events.BatchSubmitted, "sub_1", "sub_1.c1", 2, 5, batch_id="batch_1", inputs=given),
        run_event("run_b", "batch_1", "FAILED", 6, key=key[0], end=6),
        run_event("run_b", "batch_1", "FAILED", 7, key=key[0], end=6),
        run_event("run_b", "batch_1", "PROCESSING", 7.5, key=key[0], source="poll"),
        run_event("run_a", "batch_1", "PROCESSED", 8, key=key[0], end=8),
        run_event("run_c", "batch_1", "PROCESSED", 8, key=key[1], end=8),
        run_event("run_b", "batch_1", "PROCESSED", 9, key=None, end=9, source="poll"),
    ]


CHANGES = [
    "2 inputs were submitted for workflow_1",
    "attempt 1 of chunk sub_1.c1 is about to be sent; WAITING becomes SENDING",
    "attempt 1 of chunk sub_1.c1 was not accepted for now: 429; SENDING becomes WAITING",
    "attempt 2 of chunk sub_1.c1 is about to be sent; WAITING becomes SENDING",
    "webhook reports run_b as PROCESSING: first observation of this run; not matched yet (batch_unknown)",
    "attempt 2 of chunk sub_1.c1 was accepted as batch_1: answer; run_b becomes the current run; "
    "SENDING becomes PROCESSING",
    "webhook reports run_b as FAILED (INTERNAL_ERROR): replaces the known state, its status is further on; "
    "PROCESSING becomes FAILED",
    "webhook reports run_b as FAILED (INTERNAL_ERROR): no change, it was known already",
    "poll reports run_b as PROCESSING: no change, FAILED by webhook stays, its status is further on",
    "webhook reports run_a as PROCESSED: first observation of this run; run_a becomes the current run, "
    "run_b is a duplicate: of several final runs the smallest id is current; FAILED becomes PROCESSED",
    "poll reports run_b as PROCESSED: replaces the known state, its own time is later; "
    "run_a stays the current run, before run_b",
]


@pytest.mark.parametrize("indexed", ["all", "some", "nothing"])
async def test_a_history_says_what_each_event_changed(settings: Settings, pool: asyncpg.Pool, indexed: str) -> None:
    story = a_story()
    async with historian(settings, pool) as histories:
        await append(settings, story[:7])
        index = EventIndex(pool, await cluster_id(settings))
        if indexed != "nothing":
            assert await catch_up(settings, index) == 7
        await append(settings, story[7:])
        if indexed == "all":
            assert await catch_up(settings, index) == 5
            assert await catch_up(settings, index) == 0
        await applied(settings)
        found = await histories.history("sub_1:1")
        assert [event.what for event in found.events] == CHANGES
        assert (found.kind, found.status, found.run_id, found.agrees) == ("input", "PROCESSED", "run_a", True)
        of_run = await histories.history("run_b")
        assert of_run.kind == "run"
        assert [event.type for event in of_run.events].count("run-observed") == 5
        assert "batch-submitted" in [event.type for event in of_run.events]
        of_batch = await histories.history("batch_1")
        assert of_batch.kind == "batch"
        assert len(of_batch.events) == len(story) - 1
        for short, full in (("sub_1:99", []), ("1", ["sub_1:1"]), ("batch_", ["batch_1"]), ("run_", [])):
            with pytest.raises(NoHistoryError) as unknown:
                await histories.history(short)
            assert unknown.value.did_you_mean == full
        assert "did you mean" not in str(unknown.value)


@pytest.mark.parametrize("seed", range(4))
async def test_histories_agree_with_the_tables(settings: Settings, pool: asyncpg.Pool, seed: int) -> None:
    world = a_world(random.Random(seed))
    async with Producer(settings) as producer:
        await producer.append(world)
    await catch_up(settings, EventIndex(pool, await cluster_id(settings)))
    await applied(settings)
    rows = await pool.fetch("select input_id, status, version, run_id from everyrun.results")
    async with historian(settings, pool) as histories:
        for row in rows:
            found = await histories.history(row["input_id"])
            assert (found.status, found.version, found.run_id) == (row["status"], row["version"], row["run_id"])
            assert found.agrees is True


async def test_a_tampered_row_does_not_agree(settings: Settings, pool: asyncpg.Pool) -> None:
    await append(settings, a_story())
    await applied(settings)
    await pool.execute("update everyrun.results set status = 'FAILED', run_id = 'run_x' where position = 1")
    env = {
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
        "EVERYRUN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
    }
    done = await asyncio.to_thread(everyrun, "history", "sub_1:1", **env)
    assert (done.returncode, "status: the tables say 'FAILED'" in done.stderr) == (1, True), done.stderr
    assert "run_a becomes the current run" in done.stdout
    done = await asyncio.to_thread(everyrun, "history", "run_b", "--json", **env)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "PROCESSED")
    done = await asyncio.to_thread(everyrun, "history", "run_zzz", **env)
    assert done.returncode == 4


#: Changes of a row by SQL, and the columns that differ then.
TAMPERED = {
    "external_id = '7'": ["external_id"],
    "submission_id = 'sub_9'": ["submission_id"],
    "batch_id = null": ["batch_id"],
    "position = 9": ["position"],
    "chunk = 'other'": ["chunk"],
    "attempt = 9": ["attempt"],
    """file = '{"url": "https://files.example.com/other.pdf"}'""": ["file.url"],
    """metadata = '{"row": 2}'""": ["metadata.row"],
    "run_id = 'run_x'": ["run_id"],
    "status = 'FAILED'": ["status"],
    "failure_reason = 'X'": ["failure_reason"],
    "failure_message = 'X'": ["failure_message"],
    """run = jsonb_set(run, '{status}', '"FAILED"')""": ["run.status"],
    "run = null": ["run"],
    "credits = coalesce(credits, 0) + 1": ["credits"],
    "source = 'poll'": ["source"],
    "observed_at = observed_at + interval '1 millisecond'": ["observed_at"],
    "settled_at = null": ["settled_at"],
    "version = version || 'f'": ["version"],
}


async def test_every_column_of_the_row_is_compared(settings: Settings, pool: asyncpg.Pool) -> None:
    """Earlier versions did not notice changes of metadata, a total, credits or settled_at."""
    await append(settings, a_story())
    await applied(settings)
    rows = await pool.fetch(
        "select column_name from information_schema.columns where table_schema = 'everyrun' and table_name = 'results'"
    )
    assert {r["column_name"] for r in rows} - {"input_id"} == {
        name.partition(".")[0] for names in TAMPERED.values() for name in names
    }
    async with historian(settings, pool) as histories:
        untouched = await histories.history("sub_1:1")
        assert (untouched.agrees, untouched.differences) == (True, [])
        for change, columns in TAMPERED.items():
            await pool.execute("create table kept as select * from everyrun.results")
            await pool.execute(f"update everyrun.results set {change} where input_id = 'sub_1:1'")
            found = await histories.history("sub_1:1")
            assert (found.agrees, [one.column for one in found.differences]) == (False, columns), change
            await pool.execute("truncate everyrun.results; insert into everyrun.results select * from kept")
            await pool.execute("drop table kept")
        # The same JSON in another notation is no difference.
        await pool.execute("""update everyrun.results set metadata = '{"row": 1.0}' where input_id = 'sub_1:1'""")
        assert (await histories.history("sub_1:1")).agrees is True


async def test_a_deleted_row_is_a_difference(settings: Settings, pool: asyncpg.Pool) -> None:
    """The command ended with 0 if the row of a settled input was missing."""
    await append(settings, a_story())
    async with historian(settings, pool) as histories:
        # The tables have not applied the events, so the missing row says nothing yet.
        assert (await histories.history("sub_1:1")).agrees is None
        await applied(settings)
        await pool.execute("delete from everyrun.results where input_id = 'sub_1:1'")
        found = await histories.history("sub_1:1")
        assert (found.status, found.row, found.agrees) == ("PROCESSED", None, False)
        assert [(one.column, one.live) for one in found.differences] == [
            ("*", "there is no such row in the live tables")
        ]
    env = {
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
        "EVERYRUN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
    }
    done = await asyncio.to_thread(everyrun, "history", "sub_1:1", **env)
    assert (done.returncode, "there is no such row in the live tables" in done.stderr) == (1, True), done.stderr


async def test_an_input_that_is_only_in_the_queue_has_a_history(settings: Settings, pool: asyncpg.Pool) -> None:
    await pool.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, expected, batches, content_hash,"
        " created_at, announced_at) values ('sub_1', 'workflow_1', 90, 2, 1, '', now(), now())"
    )
    await pool.execute("insert into everyrun_queue.inputs values ('sub_1', 1, '1', '{}', '{}')")
    await pool.execute(
        "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position)"
        " values ('sub_1.c1', 'sub_1', 1, 2)"
    )
    async with historian(settings, pool) as histories:
        found = await histories.history("sub_1:1")
        assert (found.status, found.events, found.agrees) == ("WAITING", [], None)
        assert found.waiting is not None
        assert found.waiting.waits_for == "queued"
        await append(settings, a_story()[:1])
        assert [event.type for event in (await histories.history("sub_1:1")).events] == ["submission-accepted"]
        with pytest.raises(NoHistoryError):
            await histories.history("sub_1:2")
        with pytest.raises(NoHistoryError, match=r"queue does not have it; did you mean sub_1:1\?"):
            await histories.history("1")
    env = {
        "EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "EVERYRUN_TOPIC_PREFIX": settings.topic_prefix,
        "EVERYRUN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
    }
    done = await asyncio.to_thread(everyrun, "history", "sub_1:1", **env)
    assert done.returncode == 0, done.stderr
    assert "By the queue it is WAITING" in done.stdout
    assert "waits for its turn" in done.stdout


async def test_an_index_of_another_log_is_not_used(settings: Settings, pool: asyncpg.Pool) -> None:
    await append(settings, a_story()[:2])
    await catch_up(settings, EventIndex(pool, "another cluster"))
    async with historian(settings, pool) as histories:
        assert len((await histories.history("sub_1:1")).events) == 2
    with pytest.raises(ForeignIndexError, match="another Kafka cluster"):
        await catch_up(settings, EventIndex(pool, await cluster_id(settings)))


async def test_the_service_keeps_the_index_and_serves_histories(
    service: Any, settings: Settings, pool: asyncpg.Pool
) -> None:
    await append(settings, a_story()[:7])
    replay = await service("replay", EVERYRUN_API_TOKEN=TOKEN).ready()
    await append(settings, a_story()[7:])
    index = EventIndex(pool, await cluster_id(settings))
    ends = {position: end for position, end in (await bounds(settings, INPUTS)).end.items() if end}

    async def indexed() -> bool:
        return await index.next_offsets() == ends

    await eventually(indexed, "the index is at the end of the log", 30)
    async with httpx.AsyncClient(base_url=replay.url, headers={"authorization": f"Bearer {TOKEN}"}) as http:
        answer = await http.get("/v1/history/sub_1:1")
        assert [event["what"] for event in answer.json()["events"]] == CHANGES
        assert (await http.get("/v1/history/sub_9:1")).status_code == 404


async def test_a_row_behind_the_log_is_not_compared(settings: Settings, pool: asyncpg.Pool) -> None:
    await append(settings, a_story()[:7])
    await applied(settings)
    async with historian(settings, pool) as histories:
        assert (await histories.history("sub_1:1")).agrees is True
        await append(settings, a_story()[7:])
        behind = await histories.history("sub_1:1")
        assert (behind.status, behind.row and behind.row["status"], behind.agrees) == ("PROCESSED", "FAILED", None)


async def test_a_large_unindexed_part_of_the_log_is_not_read_for_one_question(
    service: Any, settings: Settings, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_search, "TAIL_RECORDS", 5)
    await append(settings, a_story())
    read = 0

    async def counted(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        nonlocal read
        async for stretch in read_ranges(*arguments, **options):
            read += len(stretch.records)
            yield stretch

    monkeypatch.setattr(event_search, "read_ranges", counted)
    async with historian(settings, pool) as histories:
        app = replay_api(settings.model_copy(update={"api_token": SecretStr(TOKEN)}), pool, lambda: histories)
        transport = httpx.ASGITransport(app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://replay", headers=headers) as http:
            answer = await http.get("/v1/history/sub_1:1")
            assert (answer.status_code, answer.json()["code"], read) == (503, "INDEX_BEHIND", 0)
            assert (answer.json()["indexed"], answer.json()["total"]) == (0, len(a_story()))
            assert int(answer.headers["retry-after"]) >= 5
            # Few records may be large.
            monkeypatch.setattr(event_search, "TAIL_RECORDS", 1000)
            monkeypatch.setattr(event_search, "TAIL_BYTES", 100)
            assert (await http.get("/v1/history/sub_1:1")).status_code == 503
            await catch_up(settings, histories.index)
            answer = await http.get("/v1/history/sub_1:1")
            assert answer.status_code == 200
            assert [event["what"] for event in answer.json()["events"]] == CHANGES


async def test_without_an_index_the_error_has_the_number_of_indexed_records(
    settings: Settings, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that may not write cannot index; then only a short log can be read."""
    await append(settings, a_story())
    monkeypatch.setattr(event_search, "TAIL_RECORDS", 5)
    with pytest.raises(IndexBehindError, match=f"0 of {len(a_story())} records"):
        async with historian(settings, pool) as histories:
            await histories.history("sub_1:1")
    assert IndexBehindError(0, 100).retry_after == 5
    assert IndexBehindError(0, 10**9).retry_after == 300
