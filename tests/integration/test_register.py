"""Registered batches: another caller sent them; Everyrun matches their runs by metadata."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from pydantic import SecretStr

from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission.announcer import Announcer
from everyrun.submission.api.submissions import submission_api
from everyrun.submission.recovery.queue_recovery import QueueRecovery, catch_up
from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW
from tests.integration.conftest import read_topic

pytestmark = pytest.mark.stack


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    async with await open_pool(settings, name="test") as pool:
        yield pool


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Producer]:
    async with Producer(settings) as producer:
        yield producer


#: A dependency that registering does not use.
NOTHING: Any = None


@pytest.fixture
async def announcer(settings: Settings, pool: asyncpg.Pool, producer: Producer) -> Announcer:
    dispatch_wake = asyncio.Event()
    return Announcer(pool, producer, dispatch_wake)


@pytest.fixture
async def api(
    settings: Settings, pool: asyncpg.Pool, producer: Producer, announcer: Announcer
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the submission API, with the query API under /query."""
    settings.api_token = SecretStr("token")
    headers = {"authorization": "Bearer token"}
    mounts = {
        "http://submission": httpx.ASGITransport(
            submission_api(settings, pool, announcer.wake, producer, NOTHING, QueueRecovery(settings, pool))
        ),
        "http://query": httpx.ASGITransport(query_api(settings, pool)),
    }
    async with httpx.AsyncClient(headers=headers, mounts=mounts) as client:
        yield client


def a_row(id: str, **metadata: Any) -> dict[str, Any]:
    return {"id": id, "file": {"url": f"https://files.example/{id}.pdf?signature=s"}, "metadata": metadata}


async def register(api: httpx.AsyncClient, rows: list[Any], batch: str = "batch_1", **more: str) -> httpx.Response:
    query = {"batch_id": batch, "workflow_id": WORKFLOW, **more}
    return await api.post("http://submission/v1/batches", params=query, json={"inputs": rows})


async def test_a_repeated_registration_is_published_once(api, announcer, settings) -> None:
    rows = [a_row("a", n=1), a_row("b", n=2), a_row("c", n=2)]
    first = await register(api, rows)
    assert first.status_code == 202, first.text
    said = first.json()
    assert {**said, "submission_id": "sub"} == {
        "submission_id": "sub",
        "batch_id": "batch_1",
        "expected": 3,
        "ambiguous": 2,
    }
    await announcer.announce()
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows).replace(b"signature=s", b"signature=anew")
    again = await api.post(
        "http://submission/v1/batches",
        params={"batch_id": "batch_1", "workflow_id": WORKFLOW},
        content=lines,
        headers={"content-type": "application/x-ndjson"},
    )
    assert (again.status_code, again.json()) == (202, said)
    await announcer.announce()
    ((event, headers),) = await read_topic(settings, "batches")
    assert (headers["key"], event["type"], event["submission_id"]) == (
        "batch_1",
        "batch-registered",
        said["submission_id"],
    )
    assert [given["metadata"] for given in event["inputs"]] == [{"n": 1}, {"n": 2}, {"n": 2}]
    assert event["inputs"][0]["file"] == {"url": "https://files.example/a.pdf", "redacted": True}
    listed = (await api.get("http://submission/v1/submissions")).json()["submissions"]
    assert [(s["registered_batch"], s["chunks"]) for s in listed] == [("batch_1", {"submitted": 1})]


async def test_an_invalid_registration_is_refused_and_stores_nothing(api, announcer, settings, pool) -> None:
    assert (await register(api, [a_row("a", n=1)])).status_code == 202
    await pool.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, expected, batches,"
        " content_hash, created_at)"
        " values ('s', 'w', 1, 1, '', now())"
    )
    await pool.execute(
        "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, batch_id)"
        " values ('s.c1', 's', 1, 1, 'submitted', 'batch_ours')"
    )
    refused = [
        (409, "BATCH_KNOWN", await register(api, [a_row("a", n=2)])),
        (409, "BATCH_KNOWN", await register(api, [a_row("a", n=1)], workflow_version="3")),
        (409, "BATCH_KNOWN", await register(api, [a_row("a", n=1)], batch="batch_ours")),
        (422, "BAD_ROWS", await register(api, [a_row("a", n=1), {"id": "b"}], batch="batch_2")),
        (422, "BAD_ROWS", await register(api, [a_row("a", n=1), a_row("a", n=2)], batch="batch_2")),
        (422, "BAD_ROWS", await register(api, [a_row("a", **{"everyrun:input": {}})], batch="batch_2")),
        (422, "NO_ROWS", await register(api, [], batch="batch_2")),
        (422, "INVALID_REQUEST", await register(api, [a_row("a")], batch="batch\0")),
        (413, "TOO_LARGE", await register(api, [a_row(str(n)) for n in range(1001)], batch="batch_2")),
        (413, "TOO_LARGE", await register(api, [a_row(str(n), x="x" * 9000) for n in range(101)], batch="batch_2")),
    ]
    for status, code, answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert await pool.fetchval("select count(*) from everyrun_queue.inputs") == 1
    assert await pool.fetchval("select count(*) from everyrun_queue.submissions") == 2


async def test_a_lost_registration_is_restored_from_the_log(api, announcer, settings, pool) -> None:
    rows = [a_row("a", n=1.5, m={"z": 1, "a": 2}), a_row("b")]
    said = (await register(api, rows)).json()
    await announcer.announce()
    await pool.execute("truncate everyrun_queue.submissions, everyrun_queue.chunks, everyrun_queue.inputs cascade")
    await catch_up(settings, pool, await topics.cluster_id(settings))
    assert (await register(api, rows)).json() == said
    assert (await register(api, rows[:1])).status_code == 409
    await announcer.announce()
    assert len(await read_topic(settings, "batches")) == 1


async def test_a_registered_batch_is_polled_matched_and_settled(
    service, emulator_with, api, announcer, settings
) -> None:
    """Without webhooks: two equal inputs, one with text that Postgres cannot store, one that Extend changed."""
    emulator = emulator_with("--run-seconds", "0.2:1")
    rows = [a_row(f"d-{n}", n=n, **{"extend:usage_tags": ["a b"]}) for n in range(6)]
    rows += [a_row("twin-1", twin=True), a_row("twin-2", twin=True)]
    inputs = [{"file": row["file"], "metadata": row["metadata"]} for row in rows]
    headers = {"authorization": f"Bearer {KEY}", "x-extend-api-version": "2026-02-09"}
    async with httpx.AsyncClient(base_url=emulator.url, headers=headers) as extend:
        body = {"workflow": {"id": WORKFLOW}, "inputs": inputs}
        batch = (await extend.post("/workflow_runs/batch", json=body)).json()["batchId"]
    variables = {
        "EXTEND_API_KEY": KEY,
        "EVERYRUN_EXTEND_BASE_URL": emulator.url,
        "EVERYRUN_PLAN": "enterprise",
        "EVERYRUN_POLL_FIRST_AFTER": 0.2,
        "EVERYRUN_POLL_EVERY": 1,
    }
    await service("processor").ready()
    await service("reconciler", **variables).ready()
    said = (await register(api, rows, batch=batch)).json()
    await announcer.announce()
    report: dict[str, Any] = {}

    async def settled() -> bool:
        answer = await api.get(f"http://query/v1/submissions/{said['submission_id']}/report")
        report.update(answer.json())
        return report.get("settled") == 6 and report.get("unmatched") == 2

    await eventually(settled, "what can be matched is settled", 90)
    assert report["balanced"]
    assert report["open"] == 2
    assert report["unmatched_by_reason"] == {"ambiguous_metadata": 2}
    found = (await api.get("http://query/v1/results", params={"submission_id": said["submission_id"]})).json()
    truth = {line["run_id"]: line["metadata"] for line in emulator.truth()}
    for row in found["results"]:
        if row["run_id"] is not None:
            assert truth[row["run_id"]]["n"] == row["metadata"]["n"]
    unmatched = (await api.get("http://query/v1/unmatched", params={"reason": "ambiguous_metadata"})).json()
    assert {run["batch_id"] for run in unmatched["unmatched"]} == {batch}
    assert unmatched["by_reason"] == {"ambiguous_metadata": {"runs": 2, "alarming": 0}}
