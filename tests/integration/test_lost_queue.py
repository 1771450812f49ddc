"""A queue restored from an older backup is recovered from the log, and from a repeated upload.

On a real Kafka and Postgres, with a fake Extend.
"""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from everyrun.doctor.ask_postgres import ask_postgres
from everyrun.log.events import MAX_IDEMPOTENCY_KEY
from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.submission.dispatch.protocol import FILES_LOST_IN_DOUBT, FILES_LOST_UNSENT
from everyrun.submission.recovery import queue_recovery
from tests.integration.conftest import read_topic
from tests.integration.test_doubts import NO_ANSWER, WHY, World, world

__all__ = ["world"]
pytestmark = pytest.mark.stack

TOO_MANY = httpx.Response(429, json={"code": "RATE_LIMITED"}, headers={"retry-after": "0"})


def rows(count: int, *, signed: str | None = "?signature=one", **more: Any) -> bytes:
    """Return the rows of an upload; ``signed`` is the query string of its links."""
    url = "https://files.example/%d.pdf" + (signed or "")
    lines = [{"id": f"in-{n}", "file": {"url": url % n}, "metadata": {"row": n, **more}} for n in range(count)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def upload(world: World, content: bytes, key: str | None = "k") -> httpx.Response:
    headers = {"content-type": "application/x-ndjson"} | ({} if key is None else {"idempotency-key": key})
    answer = await world.api.post(
        "/v1/submissions", params={"workflow_id": "workflow_1"}, content=content, headers=headers
    )
    await world.announcer.announce()
    return answer


async def lose(world: World) -> None:
    """Restore the queue from a backup that was made before the first submission."""
    await world.pool.execute(
        "truncate everyrun_queue.chunks, everyrun_queue.inputs, everyrun_queue.submissions, everyrun_queue.adopted,"
        " everyrun_queue.sweeps, everyrun_queue.log_position cascade"
    )
    world.resolver._unmatched.clear()


async def states(world: World) -> dict[str, str]:
    """Return the state of each chunk, by the chunk's number."""
    found = await world.pool.fetch("select chunk, state from everyrun_queue.chunks order by chunk")
    return {row["chunk"].rpartition(".")[2]: row["state"] for row in found}


async def submission(world: World) -> dict[str, Any]:
    (found,) = (await world.api.get("/v1/submissions")).json()["submissions"]
    return dict(found)


def sent_rows(world: World) -> list[list[int]]:
    """Return the rows of each call."""
    return [[given["metadata"]["row"] for given in call["inputs"]] for call in world.vendor.calls]


async def doubts(world: World, chunk: str, what: str, **body: Any) -> httpx.Response:
    return await world.api.post(f"/v1/doubts/{chunk}/{what}", json={**WHY, **body})


async def test_a_repeated_upload_sends_only_inputs_that_were_never_sent(world: World) -> None:
    world.settings.chunk_max_inputs = 2
    first = await upload(world, rows(7))
    await world.send(httpx.Response(200, json={"batchId": "batch_1"}))
    await world.send(NO_ANSWER)
    await lose(world)
    repeated = await upload(world, rows(7))
    assert (repeated.status_code, repeated.json()) == (202, first.json())
    assert await states(world) == {
        "c00001": "submitted",
        "c00002": "in_doubt",
        "c00003": "waiting",
        "c00004": "waiting",
    }
    for _ in range(4):
        await world.send()
    assert sent_rows(world) == [[0, 1], [2, 3], [4, 5], [6]]
    assert world.vendor.calls[2]["inputs"][0]["file"] == {"url": "https://files.example/4.pdf?signature=one"}
    assert (await upload(world, rows(7))).json() == first.json()
    assert not await world.dispatcher.send_one()
    said = await world.said()
    assert said.count("batch-requested") == 4, "nothing was sent twice"
    kept = await world.pool.fetch("select external_id from everyrun_queue.inputs order by position")
    assert [row["external_id"] for row in kept] == [f"in-{n}" for n in range(7)]


async def test_other_content_under_the_key_is_refused_after_a_restore(world: World) -> None:
    world.settings.chunk_max_inputs = 2
    await upload(world, rows(4))
    await lose(world)
    refused = await upload(world, rows(4, customer="another"))
    assert (refused.status_code, refused.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert await world.pool.fetchval("select count(*) from everyrun_queue.inputs") == 0
    assert (await upload(world, rows(4))).status_code == 202


async def test_newly_signed_links_restore_lost_inputs(world: World) -> None:
    world.settings.chunk_max_inputs = 2
    first = await upload(world, rows(4, signed="?signature=old"))
    await world.send(TOO_MANY)
    await lose(world)
    again = await upload(world, rows(4, signed="?signature=new"))
    assert (again.status_code, again.json()) == (202, first.json())
    await world.send()
    await world.send()
    assert [call["inputs"][0]["file"]["url"] for call in world.vendor.calls[1:]] == [
        "https://files.example/0.pdf?signature=new",
        "https://files.example/2.pdf?signature=new",
    ]
    # After the refill the full hash decides again.
    assert (await upload(world, rows(4, signed="?signature=third"))).status_code == 409


async def test_lost_inputs_are_shown_with_the_next_step(world: World, settings: Settings) -> None:
    world.settings.chunk_max_inputs = 2
    await upload(world, rows(7), key=None)
    await world.send(TOO_MANY)
    await world.project()
    await lose(world)
    await world.recovery.ensure_caught_up()
    found = await submission(world)
    assert (found["lost_inputs"], found["lost_files"], found["chunks"]) == (5, 2, {"held": 1})
    key = found["submission_id"]
    assert found["idempotency_key"] == key, "an upload without a key can be repeated too"
    reason = (
        "5 inputs were lost when the queue was restored from a backup; to send them, repeat the upload with the "
        "Idempotency-Key "
    )
    assert reason + key in found["held_up_by"]
    assert (await ask_postgres(settings))[0].lost == [(key, key, 7)]
    settings.api_token = SecretStr("token")
    transport = httpx.ASGITransport(query_api(settings, world.pool))
    headers = {"authorization": "Bearer token"}
    async with httpx.AsyncClient(transport=transport, base_url="http://query", headers=headers) as query:
        report = (await query.get(f"/v1/submissions/{key}/report")).json()
        assert (report["open"], report["overdue_by_reason"], report["balanced"]) == (
            7,
            {"held": 2, "queue_lost": 5},
            True,
        )
        assert (await upload(world, rows(7), key=key)).status_code == 202
        report = (await query.get(f"/v1/submissions/{key}/report")).json()
        assert (report["open"], report["overdue_by_reason"]) == (7, {})
    found = await submission(world)
    assert (found["lost_inputs"], found["lost_files"], found["held_up_by"]) == (0, 0, [])
    assert (await ask_postgres(settings))[0].lost == []


@pytest.mark.parametrize(("then", "cut"), [(1, [[2], [3], [6], [7]]), (5, [[2, 3], [6, 7]])])
async def test_logged_chunks_keep_their_ranges_after_the_settings_changed(
    world: World, then: int, cut: list[list[int]]
) -> None:
    world.settings.chunk_max_inputs = 2
    await upload(world, rows(8))
    chunks = [row["chunk"] for row in await world.pool.fetch("select chunk from everyrun_queue.chunks order by chunk")]
    wait = "update everyrun_queue.chunks set not_before = now() + interval '1 day' where chunk = any ($1::text[])"
    await world.pool.execute(wait, [chunks[1], chunks[3]])
    await world.send()
    await world.send()
    assert sent_rows(world) == [[0, 1], [4, 5]]
    await lose(world)
    world.settings.chunk_max_inputs = then
    await upload(world, rows(8))
    while await world.dispatcher.send_one():
        pass
    assert sorted(sent_rows(world)[2:]) == cut
    assert set((await states(world)).values()) == {"submitted"}
    assert sorted(n for call in sent_rows(world) for n in call) == list(range(8)), "each once"


async def test_a_lost_call_in_doubt_can_be_adopted(world: World) -> None:
    await upload(world, rows(2))
    await world.send(NO_ANSWER, takes=True)
    await world.project()
    await lose(world)
    await world.recovery.ensure_caught_up()
    chunk = (await world.chunk())["chunk"]
    adopted = await doubts(world, chunk, "adopt", batch_id="batch_1")
    assert (adopted.status_code, adopted.json().get("state")) == (200, "submitted")
    said = {event["type"]: event for event, _ in await read_topic(world.settings, "batches")}
    assert [given["external_id"] for given in said["doubt-adopted"]["inputs"]] == ["in-0", "in-1"]
    await world.observe("batch_1")
    await world.project()
    assert await world.pool.fetchval("select count(*) from everyrun.unmatched_runs") == 0
    assert await world.pool.fetchval("select count(*) from everyrun.results where run_id is not null") == 1


async def test_a_run_proves_a_call_that_the_queue_lost(world: World) -> None:
    await upload(world, rows(2))
    await world.send(NO_ANSWER, takes=True)
    await world.observe("batch_1")
    await world.project()
    await lose(world)
    await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["batch_id"]) == ("submitted", "batch_1")
    await world.project()
    assert await world.pool.fetchval("select count(*) from everyrun.unmatched_runs") == 0


async def test_redacted_files_are_not_sent_until_the_upload_is_repeated(world: World) -> None:
    await upload(world, rows(2))
    await world.send(NO_ANSWER)
    await world.project()
    await lose(world)
    await world.recovery.ensure_caught_up()
    await world.window_passes()
    await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["reason"]) == ("held", FILES_LOST_IN_DOUBT)
    shown = (await world.api.get("/v1/doubts")).json()["doubts"][0]
    assert (shown["can"], shown["with_force"]) == (["adopt"], ["discard"])
    assert "repeated with the Idempotency-Key k" in shown["waits_for"]
    refused = await doubts(world, chunk["chunk"], "resend", force=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "FILES_LOST")
    assert "doubt-resent" not in await world.said()
    await upload(world, rows(2))
    assert (await world.chunk())["state"] == "in_doubt"
    await world.window_passes()
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "waiting"
    await world.send()
    assert [call["inputs"][0]["file"]["url"] for call in world.vendor.calls] == [
        "https://files.example/0.pdf?signature=one"
    ] * 2


async def test_a_returned_chunk_waits_for_its_files_or_is_discarded(world: World) -> None:
    world.settings.chunk_max_inputs = 1
    await upload(world, rows(2))
    await world.send(TOO_MANY)
    await world.pool.execute("update everyrun_queue.chunks set not_before = now() + interval '1 h' where attempt = 1")
    await world.send(TOO_MANY)
    await world.project()
    await lose(world)
    await world.recovery.ensure_caught_up()
    assert not await world.dispatcher.send_one()
    found = await world.pool.fetch("select chunk, state, reason from everyrun_queue.chunks order by chunk")
    assert {(row["state"], row["reason"]) for row in found} == {("held", FILES_LOST_UNSENT)}
    discarded = await doubts(world, found[0]["chunk"], "discard", force=True)
    assert (discarded.status_code, discarded.json()["state"]) == (200, "refused")
    await upload(world, rows(2))
    assert await states(world) == {"c00001": "refused", "c00002": "waiting"}
    await world.send()
    assert sent_rows(world)[2:] == [[1]]


async def test_files_without_secrets_are_resent_without_a_person(world: World) -> None:
    await upload(world, rows(2, signed=None))
    await world.send(TOO_MANY)
    await lose(world)
    await world.recovery.ensure_caught_up()
    assert await states(world) == {"c00001": "waiting"}
    await world.send()
    assert world.vendor.calls[1]["inputs"][0]["file"] == world.vendor.calls[0]["inputs"][0]["file"]


async def test_an_upload_with_a_key_waits_until_the_log_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await upload(world, rows(2))
    await lose(world)
    whole = world.settings.kafka_bootstrap

    async def away(*_: object) -> Any:
        raise queue_recovery.KafkaError("away")

    monkeypatch.setattr(queue_recovery, "catch_up", away)
    refused = await upload(world, rows(2))
    assert (refused.status_code, refused.json()["code"], "retry-after" in refused.headers) == (503, "UNAVAILABLE", True)
    assert await world.pool.fetchval("select count(*) from everyrun_queue.submissions") == 0
    assert (await upload(world, rows(2), key=None)).status_code == 202, "without a key there is nothing to ask"
    monkeypatch.undo()
    assert world.settings.kafka_bootstrap == whole
    assert (await upload(world, rows(2))).status_code == 202
    assert await world.pool.fetchval("select count(*) from everyrun_queue.submissions") == 2


async def test_the_log_is_read_again_if_the_database_is_replaced_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upload(world, rows(2))
    await world.send(NO_ANSWER)
    await world.recovery.catch_up()
    read = queue_recovery.end_offsets
    lost = False

    async def replaced(*given: Any) -> Any:
        nonlocal lost
        found = await read(*given)
        if not lost:
            lost = True
            await lose(world)
        return found

    monkeypatch.setattr(queue_recovery, "end_offsets", replaced)
    await world.recovery.catch_up()
    assert await states(world) == {"c00001": "in_doubt"}


async def test_an_event_of_the_largest_chunk_fits_in_a_record(world: World) -> None:
    text = "é" * 400_000
    content = json.dumps({"id": "x" * 255, "file": {"text": text, "name": "n" * 200}}, ensure_ascii=False).encode()
    assert (await upload(world, content + b"\n", key="k" * MAX_IDEMPOTENCY_KEY)).status_code == 202
    assert (await upload(world, rows(2000, customer="c" * 300), key="many")).status_code == 202
    for _ in range(3):
        await world.send()
    said = [event for event, _ in await read_topic(world.settings, "batches") if event["type"] == "batch-requested"]
    sizes = [len(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()) for event in said]
    assert len(sizes) >= 3
    assert 700_000 < max(sizes) <= world.settings.chunk_max_bytes, sizes


async def test_a_registered_batch_is_registered_once_after_a_restore(world: World) -> None:
    world.vendor.batches["batch_theirs"] = {}
    query = {"batch_id": "batch_theirs", "workflow_id": "workflow_1"}
    headers = {"content-type": "application/x-ndjson"}
    first = await world.api.post("/v1/batches", params=query, content=rows(2), headers=headers)
    await world.announcer.announce()
    await lose(world)
    again = await world.api.post("/v1/batches", params=query, content=rows(2), headers=headers)
    assert (first.status_code, again.status_code, again.json()) == (202, 202, first.json())


async def test_a_key_that_was_used_again_leads_to_the_newer_submission(world: World) -> None:
    first = (await upload(world, rows(2))).json()["submission_id"]
    await lose(world)
    await world.pool.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, expected, batches, idempotency_key,"
        " content_hash, created_at) values ('sub_meanwhile', 'workflow_1', 1, 1, 'k', '', now())"
    )
    await world.recovery.ensure_caught_up()
    found: list[asyncpg.Record] = await world.pool.fetch(
        "select submission_id, idempotency_key from everyrun_queue.submissions"
    )
    assert {tuple(row) for row in found} == {("sub_meanwhile", "k"), (first, None)}


async def test_the_parts_of_a_cut_chunk_are_restored_and_not_sent_twice(world: World) -> None:
    refused = {"code": "INVALID_REQUEST", "message": "inputs are invalid", "retryable": False}
    first = await upload(world, rows(4))
    await world.send(httpx.Response(400, json=refused))
    await world.send(httpx.Response(200, json={"batchId": "batch_1"}))
    assert sent_rows(world) == [[0, 1, 2, 3], [0, 1]]
    await lose(world)
    await world.recovery.ensure_caught_up()
    assert await states(world) == {"c00001": "cut", "c00001-1": "submitted", "c00001-2": "held"}
    found = await submission(world)
    assert (found["lost_inputs"], found["lost_files"]) == (0, 2)
    assert not await world.dispatcher.send_one()
    assert (await upload(world, rows(4))).json() == first.json()
    assert await states(world) == {"c00001": "cut", "c00001-1": "submitted", "c00001-2": "waiting"}
    await world.send()
    assert sent_rows(world)[2:] == [[2, 3]]
