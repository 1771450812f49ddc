"""A sync submits every version of every object exactly once, even if it is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.cli import bucket
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW, EmulatorProcess
from tests.integration.buckets import LocalS3
from tests.integration.services import ServiceProcess
from tests.integration.test_doubts import World, world
from tests.integration.test_lost_queue import lose
from tests.unit.cli import ENV, everyrun

pytestmark = pytest.mark.stack
__all__ = ["world"]

TOKEN = "a-token-of-some-length"
#: Number of objects in the bucket, and of those that are added. The long form: EVERYRUN_SYNC_OBJECTS=3000:500.
FIRST, ADDED = (int(number) for number in os.environ.get("EVERYRUN_SYNC_OBJECTS", "600:100").split(":"))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    server = LocalS3(monkeypatch)
    yield server
    server.stop()


class Site:
    """An emulator, and a submission service that can be killed and started again."""

    def __init__(self, start: Callable[..., ServiceProcess], emulator: EmulatorProcess, s3: LocalS3, dsn: str) -> None:
        self._start, self._dsn = start, dsn
        self.variables = {
            "EXTEND_API_KEY": KEY,
            "EVERYRUN_EXTEND_BASE_URL": emulator.url,
            "EVERYRUN_API_TOKEN": TOKEN,
            **s3.variables,
        }
        self.service: ServiceProcess

    async def start(self, **more: str) -> None:
        self.service = await self._start("submission", **self.variables, **more).ready()

    def command(self, source: str, *options: str) -> tuple[list[str], dict[str, str]]:
        """Return the arguments and the environment of a sync."""
        here = {"EVERYRUN_SUBMISSION_URL": self.service.url, "EVERYRUN_QUERY_URL": self.service.url}
        return ["sync", source, "--workflow", WORKFLOW, "--settle", "0", *options], here | self.variables

    async def sync(self, source: str, *options: str) -> Any:
        arguments, env = self.command(source, *options)
        return await asyncio.to_thread(lambda: everyrun(*arguments, **env))

    def begin_sync(self, source: str) -> subprocess.Popen[bytes]:
        """Start a sync as a process of its own."""
        arguments, env = self.command(source)
        code = "from everyrun.cli.app import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**ENV, **env, "PATH": "", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    async def inputs(self) -> list[str]:
        """Return the id and the version of every input in the queue, sorted."""
        connection = await asyncpg.connect(self._dsn)
        rows = await connection.fetch("select external_id, file from everyrun_queue.inputs")
        await connection.close()
        return sorted(f"{row['external_id']} {json.loads(row['file']).get('etag')}" for row in rows)


@pytest.fixture
async def site(
    settings: Settings,
    s3: LocalS3,
    service: Callable[..., ServiceProcess],
    emulator_with: Callable[..., EmulatorProcess],
) -> Site:
    return Site(service, emulator_with("--run-seconds", "0"), s3, settings.postgres_dsn.get_secret_value())


async def test_a_bucket_is_synced_and_then_only_what_is_new_or_changed(site: Site, s3: LocalS3) -> None:
    await site.start()
    await asyncio.to_thread(s3.put_all, [f"in/{n:04d}.pdf" for n in range(FIRST)])
    first = await site.sync("s3://invoices/in")
    assert first.exit_code == 0, first.output
    assert f"{FIRST} objects: {FIRST} new, 0 changed, 0 submitted before, 0 gone" in first.output
    await asyncio.to_thread(s3.put_all, [f"in/{n:04d}.pdf" for n in range(FIRST, FIRST + ADDED)])
    await asyncio.to_thread(s3.put_all, [f"in/{n:04d}.pdf" for n in range(20)], b"changed")
    s3.delete("in/0500.pdf")
    dry = await site.sync("s3://invoices/in", "--dry-run")
    second = await site.sync("s3://invoices/in")
    for done in (dry, second):
        counts = f"{ADDED} new, 20 changed, {FIRST - 21} submitted before, 1 gone"
        assert f"{FIRST + ADDED - 1} objects: {counts}" in done.output
    assert f"{ADDED + 20} inputs submitted" in second.output
    third = await site.sync("s3://invoices/in/")
    assert f"0 new, 0 changed, {FIRST + ADDED - 1} submitted before, 1 gone" in third.output
    assert "submitted, in" not in third.output
    inputs = await site.inputs()
    assert len(inputs) == len(set(inputs)) == FIRST + ADDED + 20


@pytest.mark.parametrize("point", ["intake.before_commit", "intake.after_commit"])
async def test_a_sync_that_is_killed_with_its_service_ends_the_same(site: Site, s3: LocalS3, point: str) -> None:
    await asyncio.to_thread(s3.put_all, [f"in/{n}.pdf" for n in range(50)])
    await site.start(EVERYRUN_FAILPOINTS=point)
    killed = site.begin_sync("s3://invoices/in")
    await eventually(lambda: site.service.process.poll() is not None, f"the service is killed at {point}", 60)
    killed.kill()
    killed.wait()
    await site.start()
    again = await site.sync("s3://invoices/in")
    assert again.exit_code == 0, again.output
    known = 50 if point == "intake.after_commit" else 0
    assert f"{50 - known} new, 0 changed, {known} submitted before" in again.output
    inputs = await site.inputs()
    assert len(inputs) == len(set(inputs)) == 50


async def test_a_sync_repeats_its_request_when_the_service_comes_back(
    site: Site, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is killed after the commit, so the answer is lost; the repeated request is the same submission."""
    await asyncio.to_thread(s3.put_all, [f"in/{n}.pdf" for n in range(5)])
    port = {"EVERYRUN_SUBMISSION_LISTEN": "127.0.0.1:0"}
    await site.start(EVERYRUN_FAILPOINTS="intake.after_commit")
    port["EVERYRUN_SUBMISSION_LISTEN"] = f"127.0.0.1:{site.service.port}"
    syncing = site.begin_sync("s3://invoices/in")
    await eventually(lambda: site.service.process.poll() is not None, "the service is killed", 60)
    site._start("submission", **site.variables, **port)
    output = (await asyncio.to_thread(syncing.communicate))[0].decode()
    assert syncing.returncode == 0, output
    assert "5 inputs submitted" in output
    assert len(await site.inputs()) == 5


async def test_a_folder_is_synced_by_size_and_time(site: Site, tmp_path: Path) -> None:
    await site.start()
    folder = tmp_path / "inbox"
    (folder / "sub").mkdir(parents=True)
    for n in range(3):
        (folder / "sub" / f"{n}.pdf").write_bytes(b"%PDF-1." + bytes([n]))
    options = ("--data-dir", str(tmp_path / "data"))
    assert "3 files: 3 new" in (await site.sync(str(folder), *options)).output
    (folder / "sub" / "0.pdf").write_bytes(b"%PDF-1. and more")
    (folder / "3.pdf").write_bytes(b"%PDF-1.3")
    (folder / "sub" / "2.pdf").unlink()
    done = await site.sync(str(folder), *options)
    assert "3 files: 1 new, 1 changed, 1 submitted before, 1 gone; 0 left out" in done.output
    assert "2 inputs submitted" in done.output
    assert [one.split()[0] for one in await site.inputs()] == [
        "3.pdf",
        "sub/0.pdf",
        "sub/0.pdf",
        "sub/1.pdf",
        "sub/2.pdf",
    ]


async def test_watch_looks_again_until_it_is_stopped(site: Site, s3: LocalS3) -> None:
    await site.start()
    arguments, env = site.command("s3://invoices/in", "--watch", "--every", "1")
    code = "from everyrun.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, env={**ENV, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as watching:
        for count, key in enumerate(("in/a.pdf", "in/b.pdf"), 1):
            s3.put(key)

            async def has(count: int = count) -> bool:
                return len(await site.inputs()) == count

            await eventually(has, f"{key} is submitted", 60)
        watching.send_signal(signal.SIGINT)
        output = (await asyncio.to_thread(watching.communicate))[0].decode()
    assert watching.returncode == 130, output
    assert "The next sync continues where this one ended" in output
    assert len(await site.inputs()) == 2


async def post(world: World, *rows: Any, source: str = "s3://invoices/in", key: str = "k1") -> httpx.Response:
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    headers = {"content-type": "application/x-ndjson", "idempotency-key": key}
    query = {"workflow_id": "workflow_1", "source": source}
    return await world.api.post("/v1/syncs", params=query, content=content, headers=headers)


def row(name: str, version: str, was: str | None = None) -> dict[str, Any]:
    file = {"object": f"s3://invoices/in/{name}", "etag": version}
    return {"id": name, "file": file, "synced": {"version": version, "was": was}}


async def known(world: World, **query: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    cursor = None
    while True:
        params = {"workflow_id": "workflow_1", "source": "s3://invoices/in", "limit": 2, **query}
        answer = await world.api.get("/v1/syncs", params=params | ({"cursor": cursor} if cursor else {}))
        found |= {one["object"]: one["version"] for one in answer.json()["objects"]}
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


async def test_what_another_sync_submitted_meanwhile_is_not_submitted_again(world: World) -> None:
    assert (await post(world, row("a", "1"), row("b", "1"), row("c", "1"))).status_code == 202
    assert await known(world) == {"a": "1", "b": "1", "c": "1"}
    for stale in (row("a", "1"), row("b", "2", "0"), row("e", "2", "1")):
        answer = await post(world, row("d", "1"), stale, key="k2")
        assert (answer.status_code, answer.json()["code"]) == (409, "SYNCED_MEANWHILE")
    assert (await post(world, row("d", "1"), row("b", "2", "1"), key="k3")).status_code == 202
    assert await known(world) == {"a": "1", "b": "2", "c": "1", "d": "1"}
    assert await known(world, source="s3://invoices/out") == {}
    assert await known(world, workflow_id="workflow_2") == {}
    assert await world.pool.fetchval("select count(*) from everyrun_queue.inputs") == 5


async def test_two_syncs_at_once_submit_each_object_once(world: World) -> None:
    rows = [row(f"{n:03d}", "1") for n in range(200)]
    answers = await asyncio.gather(post(world, *rows, key="k1"), post(world, *reversed(rows), key="k2"))
    assert sorted(answer.status_code for answer in answers) == [202, 409]
    assert await world.pool.fetchval("select count(*) from everyrun_queue.inputs") == 200


async def test_a_repeated_request_gets_the_first_answer(world: World) -> None:
    first, second = await post(world, row("a", "1")), await post(world, row("a", "1"))
    assert first.json()["submission_id"] == second.json()["submission_id"]
    answer = await post(world, row("b", "1"))
    assert (answer.status_code, answer.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"id": "a", "file": {"text": "t"}}, "synced", "is required"),
        ({"file": {"text": "t"}, "synced": {"version": "1", "was": None}}, "id", "is required in a sync"),
        ({"id": "a", "file": {"text": "t"}, "synced": {"version": "", "was": None}}, "synced.version", "1 to 200"),
        ({"id": "a", "file": {"text": "t"}, "synced": {"version": "1"}}, "synced", "is required"),
    ],
)
async def test_a_bad_row_is_named(world: World, given: dict[str, Any], field: str, says: str) -> None:
    answer = await post(world, row("b", "1"), given)
    assert (answer.status_code, answer.json()["code"]) == (422, "BAD_ROWS")
    (bad,) = answer.json()["rows"]
    assert (bad["row"], bad["field"]) == (2, field)
    assert says in bad["reason"]
    assert await known(world) == {}


async def test_a_restored_queue_learns_from_the_log_what_was_synced(world: World, s3: LocalS3) -> None:
    s3.put_all(["in/a.pdf", "in/b.pdf", "in/c.pdf"])
    found = await asyncio.to_thread(bucket.find, "s3://invoices/in", (), (), lambda count: None)
    versions = {one.id: one.version for one in found.objects}
    await post(world, *(row(name, versions[name]) for name in ("a.pdf", "b.pdf")), key="k1")
    s3.put("in/a.pdf", b"changed")
    changed = await asyncio.to_thread(bucket.find, "s3://invoices/in", (), (), lambda count: None)
    newer = {one.id: one.version for one in changed.objects}["a.pdf"]
    await post(world, row("a.pdf", newer, versions["a.pdf"]), key="k2")
    await world.announcer.announce()
    while await world.dispatcher.send_one():
        pass
    await post(world, row("c.pdf", versions["c.pdf"]), key="k3")
    await lose(world)
    await world.pool.execute("truncate everyrun_queue.synced_objects")
    await world.recovery.catch_up()
    assert await known(world) == {"a.pdf": newer, "b.pdf": versions["b.pdf"]}, "c.pdf was never announced"
