"""Retries on a real Kafka and Postgres: what is sent, when, and what a restored queue knows of it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from everyrun.query.api import query_api
from everyrun.submission.retry.announce import announce_retries
from everyrun.submission.retry.rules import stop_by_rules
from tests.integration.conftest import read_topic
from tests.integration.test_doubts import World, world
from tests.integration.test_lost_queue import lose, rows, sent_rows, upload

__all__ = ["world"]
pytestmark = pytest.mark.stack

REFUSED = httpx.Response(400, json={"code": "INVALID_REQUEST", "message": "no", "requestId": "r", "retryable": False})


async def refused(world: World, count: int = 2, **options: Any) -> str:
    """Submit inputs, each in a chunk of its own, all of which Extend refuses; return the submission's id."""
    world.settings.chunk_max_inputs = 1
    answer = await upload(world, rows(count, **options))
    for _ in range(count):
        await world.send(REFUSED)
    await world.project()
    submission_id: str = answer.json()["submission_id"]
    return submission_id


async def retry(world: World, submission_id: str, **body: Any) -> httpx.Response:
    return await world.api.post(f"/v1/submissions/{submission_id}/retries", json={"reason": "fixed", **body})


async def announce(world: World) -> None:
    await announce_retries(world.pool, world.producer, asyncio.Event())


async def statuses(world: World) -> dict[str, str]:
    found = await world.pool.fetch("select external_id, status from everyrun.results order by position")
    return {row["external_id"]: row["status"] for row in found}


async def test_a_new_try_is_not_sent_before_its_event_is_in_the_log(world: World) -> None:
    submission_id = await refused(world)
    assert (await retry(world, submission_id)).status_code == 202
    assert not await world.dispatcher.send_one()
    await announce(world)
    await announce(world)
    assert (await world.said()).count("inputs-retried") == 2, "one for each original chunk, and each once"
    await world.project()
    assert await statuses(world) == {"in-0": "WAITING", "in-1": "WAITING"}
    assert await world.dispatcher.send_one()
    assert await world.dispatcher.send_one()
    await world.project()
    assert await statuses(world) == {"in-0": "SUBMITTED", "in-1": "SUBMITTED"}
    assert sent_rows(world) == [[0], [1], [0], [1]]
    marks = [call["inputs"][0]["metadata"]["everyrun:input"] for call in world.vendor.calls]
    assert [mark["chunk"].rpartition(".")[2] for mark in marks] == ["c00001", "c00002", "c00001-r1", "c00002-r1"]
    assert [mark["position"] for mark in marks] == [1, 2, 1, 2]


async def test_a_restored_queue_sends_a_new_try_that_was_announced_and_none_twice(world: World) -> None:
    submission_id = await refused(world, signed="")
    await retry(world, submission_id)
    await announce(world)
    await world.send(httpx.Response(200, json={"batchId": "batch_9"}))
    await lose(world)
    await world.pool.execute("truncate everyrun_queue.retries")
    await world.recovery.ensure_caught_up()
    while await world.dispatcher.send_one():
        pass
    assert sent_rows(world) == [[0], [1], [0], [1]], "the second new try is sent, the first is not sent again"
    listed = (await world.api.get(f"/v1/submissions/{submission_id}/retries")).json()["retries"]
    assert [(one["retry"], one["inputs"], one["reason"]) for one in listed] == [(1, 2, "fixed")]
    found = await world.pool.fetch("select position, first_try from everyrun_queue.inputs order by position")
    assert [tuple(row) for row in found] == [(1, None), (2, None), (3, 1), (4, 2)]
    lost = await world.pool.fetchval("select lost_inputs from everyrun_queue.submissions")
    assert lost == 0


async def test_inputs_whose_links_were_removed_need_new_files_and_are_named(world: World) -> None:
    submission_id = await refused(world)
    await world.pool.execute(
        """update everyrun_queue.inputs set file = '{"url":"https://files.example/0.pdf","redacted":true}'"""
        " where position = 1"
    )
    answer = await retry(world, submission_id)
    assert (answer.status_code, answer.json()["code"], answer.json()["needs_files_ids"]) == (
        409,
        "FILES_NEEDED",
        ["in-0"],
    )
    assert await world.pool.fetchval("select count(*) from everyrun_queue.retries") == 0
    new = {"url": "https://files.example/new.pdf?signature=two"}
    assert (await retry(world, submission_id, files=[{"id": "in-0", "file": new}])).status_code == 202
    await announce(world)
    while await world.dispatcher.send_one():
        pass
    assert [call["inputs"][0]["file"] for call in world.vendor.calls[2:]] == [
        new,
        {"url": "https://files.example/1.pdf?signature=one"},
    ]
    (event, *_) = [e for e, _ in await read_topic(world.settings, "batches") if e["type"] == "inputs-retried"]
    assert "signature" not in json.dumps(event), "the log has no secret"


async def test_an_input_is_missing_if_extend_no_longer_has_its_run(world: World) -> None:
    world.settings.chunk_max_inputs = 1
    answer = await upload(world, rows(1))
    submission_id = answer.json()["submission_id"]
    await world.send(httpx.Response(200, json={"batchId": "batch_1"}))
    await world.observe("batch_1")
    await world.project()
    nothing = await retry(world, submission_id)
    assert nothing.json()["code"] == "NOTHING_TO_RETRY", "it is still running"
    await world.pool.execute(
        "insert into everyrun_queue.gone_runs values ('run of batch_1', 'batch_1', $1)", datetime.now(UTC)
    )
    path = f"/v1/submissions/{submission_id}/retries/preview"
    preview = await world.api.post(path, json={"reason": "look"})
    assert (preview.status_code, preview.json()["by_status"]) == (200, {"MISSING": 1})
    assert (await retry(world, submission_id)).status_code == 202
    await announce(world)
    await world.project()
    assert await statuses(world) == {"in-0": "WAITING"}
    others = await world.pool.fetch("select run_id, superseded from everyrun.other_runs")
    assert [tuple(row) for row in others] == [("run of batch_1", True)]
    assert await world.pool.fetchval("select bool_and(balanced) from everyrun.report")


async def test_a_run_of_an_earlier_try_that_appears_later_is_superseded(world: World) -> None:
    world.settings.chunk_max_inputs = 1
    answer = await upload(world, rows(1))
    submission_id = answer.json()["submission_id"]
    await world.send(httpx.ReadTimeout("no answer"), takes=True)
    chunk = (await world.chunk())["chunk"]
    await world.project()
    await world.api.post(f"/v1/doubts/{chunk}/discard", json={"reason": "enough", "force": True})
    await world.project()
    assert (await retry(world, submission_id, filter={"reasons": ["DISCARDED"]})).status_code == 202
    await announce(world)
    await world.send(httpx.Response(200, json={"batchId": "batch_2"}))
    await world.project()
    await world.observe("batch_1")
    await world.project()
    await world.resolver.resolve()
    await world.project()
    assert await statuses(world) == {"in-0": "SUBMITTED"}
    others = await world.pool.fetch("select run_id, superseded from everyrun.other_runs")
    assert [tuple(row) for row in others] == [("run of batch_1", True)]
    assert await world.pool.fetchval("select bool_and(balanced) from everyrun.report")


async def test_a_registered_batch_and_an_unknown_submission_are_refused(world: World) -> None:
    answer = await retry(world, "sub_unknown")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    submission_id = await refused(world, 1)
    await world.pool.execute("update everyrun_queue.submissions set registered_batch = 'batch_5'")
    answer = await retry(world, submission_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_OURS")


async def test_a_submission_that_fails_too_often_is_paused_once(world: World) -> None:
    world.settings.chunk_max_inputs = 1
    headers = {"content-type": "application/x-ndjson"}
    parameters: dict[str, Any] = {"workflow_id": "workflow_1", "stop_after_failures": 1}
    answer = await world.api.post("/v1/submissions", params=parameters, content=rows(5), headers=headers)
    submission_id = answer.json()["submission_id"]
    await world.announcer.announce()
    await world.send(REFUSED)
    await world.project()
    await stop_by_rules(world.pool, world.producer)
    await world.send(REFUSED)
    assert len(world.vendor.calls) == 2, "one failure is allowed"
    await world.project()
    await stop_by_rules(world.pool, world.producer)
    assert not await world.dispatcher.send_one()
    shown = (await world.api.get(f"/v1/submissions/{submission_id}")).json()
    assert shown["paused"]
    reason = await world.pool.fetchval("select reason from everyrun_queue.paused")
    assert reason.startswith("2 inputs failed, more than the 1 that --stop-after-failures allows")
    await world.api.post(f"/v1/submissions/{submission_id}/resume", json={"reason": "go on"})
    await stop_by_rules(world.pool, world.producer)
    await world.send(REFUSED)
    assert len(world.vendor.calls) == 3, "a person has decided, so it is not paused again"


async def test_the_rules_of_a_submission_are_known_to_a_restored_queue(world: World) -> None:
    headers = {"content-type": "application/x-ndjson"}
    parameters = {"workflow_id": "workflow_1", "retries": 2, "retry_reason": "OCR_ERROR", "stop_after_failures": 7}
    await world.api.post("/v1/submissions", params=parameters, content=rows(1), headers=headers)
    await world.announcer.announce()
    before = await world.pool.fetch("select * from everyrun_queue.rules")
    await lose(world)
    await world.pool.execute("truncate everyrun_queue.rules")
    await world.recovery.ensure_caught_up()
    assert await world.pool.fetch("select * from everyrun_queue.rules") == before
    assert len(before) == 1


async def test_decisions_are_listed_newest_first_with_who_and_why(world: World) -> None:
    submission_id = await refused(world, 1)
    await retry(world, submission_id, by="ann")
    await announce(world)
    await world.api.post(f"/v1/submissions/{submission_id}/pause", json={"reason": "look", "by": "bob"})
    await world.project()
    application = query_api(world.settings, world.pool)
    headers = {"authorization": "Bearer token"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://q", headers=headers) as q:

        async def listed(**query: Any) -> list[tuple[str, str, str]]:
            answer = await q.get("/v1/decisions", params=query)
            assert answer.status_code == 200, answer.text
            return [(one["kind"], one["decided_by"].split()[0], one["reason"]) for one in answer.json()["decisions"]]

        retried, paused = ("inputs-retried", "ann", "fixed (1 inputs)"), ("submission-paused", "bob", "look")
        assert await listed(submission_id=submission_id) == [paused, retried]
        assert await listed(kind="inputs-retried") == [retried]
        assert await listed(by="BOB") == [paused]
        assert await listed(since="2999-01-01T00:00:00Z") == []
        first = (await q.get("/v1/decisions", params={"limit": 1})).json()
        assert [one["kind"] for one in first["decisions"]] == ["submission-paused"]
        assert await listed(limit=1, cursor=first["next_cursor"]) == [retried]
        bad = await q.get("/v1/decisions", params={"since": "yesterday"})
        assert (bad.status_code, bad.json()["field"]) == (422, "since")
