"""Objects of a bucket are listed at hand-in, and presigned for each attempt."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from everyrun.cli import bucket
from everyrun.settings import Settings
from everyrun.submission.retry.announce import announce_retries
from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW, EmulatorProcess
from tests.integration.buckets import LocalS3
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess
from tests.integration.test_doubts import World, world
from tests.unit.cli import everyrun

pytestmark = pytest.mark.stack
__all__ = ["world"]

KEYS = ["in/a.pdf", "in/deep/sp ace ü.pdf", "in/q?x#y%20z.pdf"]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    server = LocalS3(monkeypatch)
    yield server
    server.stop()


async def submit(world: World, *rows: dict[str, Any]) -> httpx.Response:
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    headers = {"content-type": "application/x-ndjson"}
    answer = await world.api.post(
        "/v1/submissions", params={"workflow_id": "workflow_1"}, content=content, headers=headers
    )
    await world.announcer.announce()
    return answer


def of(key: str, **more: str) -> dict[str, Any]:
    return {"id": key, "file": {"object": f"s3://invoices/{key}", **more}}


async def states(world: World) -> dict[str, str]:
    rows = await world.pool.fetch("select chunk, state from everyrun_queue.chunks order by chunk")
    return {row["chunk"].partition(".")[2]: row["state"] for row in rows}


def sent(world: World, call: int = -1) -> list[str]:
    return [given["file"]["url"] for given in world.vendor.calls[call]["inputs"]]


async def test_every_attempt_gets_fresh_links_that_work_and_are_stored_nowhere(world: World, s3: LocalS3) -> None:
    for key in KEYS:
        s3.put(key, key.encode())
    assert (await submit(world, *map(of, KEYS))).status_code == 202
    await world.send(httpx.ConnectError("refused"))
    links = sent(world)
    async with httpx.AsyncClient() as http:
        assert [(await http.get(link)).text for link in links] == KEYS
    query = parse_qs(urlsplit(links[0]).query)
    assert query["X-Amz-Expires"] == ["86400"]

    async def waits_no_more() -> bool:
        return bool(await world.pool.fetchval("select not_before < now() from everyrun_queue.chunks"))

    await eventually(waits_no_more, "the chunk may be sent again")
    await world.send()
    again = parse_qs(urlsplit(sent(world)[0]).query)
    assert again["X-Amz-Date"] > query["X-Amz-Date"], "the link of the second attempt is newer"
    assert await states(world) == {"c00001": "submitted"}

    await world.project()
    files = [json.loads(row["file"]) for row in await world.pool.fetch("select file::text from everyrun.results")]
    assert sorted(file["object"] for file in files) == sorted(f"s3://invoices/{key}" for key in KEYS)
    flat = await world.pool.fetch("select file_url from everyrun.flat_results")
    assert sorted(row["file_url"] for row in flat) == sorted(f"s3://invoices/{key}" for key in KEYS)
    logged = json.dumps([event for event, _ in await read_topic(world.settings, "batches")])
    queued = str(await world.pool.fetch("select * from everyrun_queue.inputs"))
    for text in (logged, queued):
        assert "s3://invoices/in/a.pdf" in text
        assert "X-Amz" not in text


async def test_an_object_that_is_gone_or_changed_is_refused_and_the_others_are_sent(world: World, s3: LocalS3) -> None:
    s3.put_all([f"in/{n}.pdf" for n in range(6)])
    found = {one.relative: one for one in await asyncio.to_thread(listed, "s3://invoices/in")}
    await submit(world, *(of(f"in/{n}.pdf", etag=str(found[f"{n}.pdf"].etag)) for n in range(6)))
    s3.delete("in/2.pdf")
    s3.put("in/4.pdf", b"other content")
    while await world.dispatcher.send_one():
        pass
    await world.project()
    rows = await world.pool.fetch("select external_id, status, failure_reason, failure_message from everyrun.results")
    refused = {row["external_id"]: row for row in rows if row["status"] == "REFUSED"}
    assert {name: row["failure_reason"] for name, row in refused.items()} == {
        "in/2.pdf": "OBJECT_NOT_FOUND",
        "in/4.pdf": "OBJECT_CHANGED",
    }
    assert "there is no object s3://invoices/in/2.pdf any more" in refused["in/2.pdf"]["failure_message"]
    assert {row["external_id"] for row in rows if row["status"] == "SUBMITTED"} == {f"in/{n}.pdf" for n in (0, 1, 3, 5)}
    assert "batch-in-doubt" not in await world.said()


async def test_a_retry_presigns_again_and_needs_no_new_file(world: World, s3: LocalS3) -> None:
    s3.put("in/changed.pdf", b"old")
    (found,) = await asyncio.to_thread(listed, "s3://invoices/in")
    await submit(world, of("in/late.pdf"), of("in/changed.pdf", etag=str(found.etag)))
    s3.put("in/changed.pdf", b"new")
    while await world.dispatcher.send_one():
        pass
    await world.project()
    assert world.vendor.calls == []

    submission_id = await world.pool.fetchval("select submission_id from everyrun_queue.submissions")
    s3.put("in/late.pdf", b"here")
    new = {"id": "in/changed.pdf", "file": {"object": "s3://invoices/in/changed.pdf"}}
    body = {"reason": "uploaded", "filter": {"statuses": ["REFUSED"]}, "files": [new]}
    answer = await world.api.post(f"/v1/submissions/{submission_id}/retries", json=body)
    assert answer.status_code == 202, answer.text
    await announce_retries(world.pool, world.producer, asyncio.Event())
    while await world.dispatcher.send_one():
        pass
    links = [given["file"]["url"] for call in world.vendor.calls for given in call["inputs"]]
    async with httpx.AsyncClient() as http:
        assert sorted([(await http.get(link)).text for link in links]) == ["here", "new"]
    await world.project()
    assert {row["status"] for row in await world.pool.fetch("select status from everyrun.results")} == {"SUBMITTED"}


async def test_missing_credentials_pause_the_submission_until_they_are_there(
    world: World, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("in/a.pdf")
    await submit(world, of("in/a.pdf"))
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        without.delenv("AWS_SECRET_ACCESS_KEY")
        # The client library asks the machine's metadata service for credentials; this machine has none.
        without.setenv("AWS_METADATA_ENDPOINT", "http://169.254.169.254:9")
        await world.dispatcher.send_one()
        answer = await world.api.get("/v1/objects/check", params={"object": "s3://invoices/in/a.pdf"})
    assert (answer.status_code, answer.json()["code"]) == (422, "OBJECT_UNREADABLE")
    assert world.vendor.calls == []
    paused = await world.pool.fetchval("select reason from everyrun_queue.paused where kind = 'submission'")
    assert "Give the submission service credentials" in paused
    assert await states(world) == {"c00001": "waiting"}
    world.dispatcher._links._buckets.clear()
    submission = await world.pool.fetchval("select submission_id from everyrun_queue.submissions")
    await world.api.post(f"/v1/submissions/{submission}/resume", json={"reason": "set", "by": "ann"})
    await world.send()
    assert await states(world) == {"c00001": "submitted"}


async def test_the_service_says_before_an_upload_if_it_can_read_an_object(world: World, s3: LocalS3) -> None:
    s3.put("in/a.pdf")

    async def check(address: str) -> tuple[int, str]:
        answer = await world.api.get("/v1/objects/check", params={"object": address})
        return answer.status_code, answer.json().get("code", answer.json().get("object"))

    assert await check("s3://invoices/in/a.pdf") == (200, "s3://invoices/in/a.pdf")
    assert await check("s3://invoices/in/b.pdf") == (422, "OBJECT_UNREADABLE")
    assert await check("s3://invoices/") == (422, "INVALID_REQUEST")
    assert await check("file:///etc/passwd") == (422, "INVALID_REQUEST")


def listed(source: str, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[bucket.BucketObject]:
    return bucket.find(source, include, exclude, lambda count: None).objects


def test_what_is_listed_and_what_is_left_out(s3: LocalS3) -> None:
    s3.put_all(["in/a.pdf", "in/sub/b.PDF", "in/drafts/c.pdf", "in/notes.zip", "in/.hidden.pdf", "in/README"])
    s3.put_all(["in-2025/old.pdf"])
    for key in ("in/sub/", "in/empty.pdf"):
        s3.put(key, b"")
    found = bucket.find("s3://invoices/in/", (), ("drafts",), lambda count: None)
    assert [one.relative for one in found.objects] == ["a.pdf", "sub/b.PDF"]
    assert found.skipped == {
        "excluded (--exclude)": ["drafts/c.pdf"],
        "of a type that Extend does not accept": ["notes.zip"],
        "hidden, a lock file, a backup, or an unfinished download": [".hidden.pdf"],
        "without an extension, so their type is not known": ["README"],
        "folder placeholders": ["sub"],
        "empty": ["empty.pdf"],
    }
    assert [one.relative for one in listed("s3://invoices/in", include=("sub/",))] == ["sub/b.PDF"]
    assert {one.relative.partition("/")[0] for one in listed("s3://invoices")} == {"in", "in-2025"}
    for source, says in (
        ("s3://invoices/none", "there is no object below s3://invoices/none"),
        ("s3://invoices/in/a.pdf", "To send it alone, name the prefix above it: s3://invoices/in --include a.pdf"),
        ("s3://key:secret@invoices/in", "is not an address of the form"),
    ):
        with pytest.raises(Exception, match=says):
            listed(source)
    with pytest.raises(Exception, match="matches no file or folder"):
        listed("s3://invoices/in", include=("*.docx",))
    s3.put("in//twice.pdf")
    with pytest.raises(Exception, match=r"in//twice\.pdf"):
        listed("s3://invoices/in")


async def test_a_bucket_is_submitted_by_one_command_and_extend_gets_presigned_links(
    settings: Settings,
    s3: LocalS3,
    service: Callable[..., ServiceProcess],
    emulator_with: Callable[..., EmulatorProcess],
    tmp_path: Path,
) -> None:
    for key in [*KEYS, "in/x.zip"]:
        s3.put(key, key.encode())
    emulator = emulator_with("--run-seconds", "0")
    token = "a-token-of-some-length"
    extend = {"EXTEND_API_KEY": KEY, "EVERYRUN_EXTEND_BASE_URL": emulator.url, "EVERYRUN_API_TOKEN": token}
    submission = await service("submission", **extend, **s3.variables).ready()
    here = {"EVERYRUN_SUBMISSION_URL": submission.url, "EVERYRUN_QUERY_URL": submission.url, **extend}
    command = ("submit", "s3://invoices/in", "--workflow", WORKFLOW)

    dry = await asyncio.to_thread(lambda: everyrun(*command, "--dry-run", **here))
    assert dry.exit_code == 0, dry.output
    assert "Found 4 objects: 3 to send, 1 left out" in dry.output
    done = await asyncio.to_thread(lambda: everyrun(*command, **here))
    assert done.exit_code == 0, done.output
    assert "3 inputs submitted, in 1 batch" in done.output

    (database,) = tmp_path.glob("emulator0/state/*.sqlite")

    def files() -> list[dict[str, str]]:
        with sqlite3.connect(database) as connection:
            return [json.loads(file) for (file,) in connection.execute("select file from runs order by number")]

    await eventually(lambda: len(files()) == 3, "the batch is at Extend")
    async with httpx.AsyncClient() as http:
        assert {file["name"]: (await http.get(file["url"])).text for file in files()} == {
            key.rpartition("/")[2]: key for key in KEYS
        }
    again = await asyncio.to_thread(lambda: everyrun(*command, **here))
    assert "These 3 rows were submitted before" in again.output
