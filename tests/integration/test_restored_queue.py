"""The database is replaced by an older dump during a job: no input is sent twice or lost.

All services keep running. The emulator says what really happened.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import msgspec
import pytest
from pydantic import SecretStr

from everyrun.cli import job
from everyrun.embedded.webhook import register_webhook
from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission.intake import parse
from everyrun.submission.intake.accept import accept_submission
from tests.conftest import eventually, free_port
from tests.contract.conftest import KEY, WORKFLOW, EmulatorProcess
from tests.integration.services import ServiceProcess
from tests.integration.test_backfill import AWAY, TOOLS, are_as_undisturbed, psql, until_acknowledged

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
CHUNKS, PER_CHUNK = 16, 5
OTHER = "workflow_that_is_paused"


async def all_services(service: Any, emulator: EmulatorProcess, **more: object) -> dict[str, ServiceProcess]:
    """Start the four services with the emulator as Extend, which sends a webhook for every run."""
    port = free_port()
    secret = await register_webhook(emulator.url, KEY, WORKFLOW, f"http://127.0.0.1:{port}/webhooks/extend", 1 << 20)
    variables = {
        "EXTEND_API_KEY": KEY,
        "EVERYRUN_EXTEND_BASE_URL": emulator.url,
        "EVERYRUN_API_TOKEN": TOKEN,
        "EVERYRUN_WEBHOOK_SECRETS": secret,
        "EVERYRUN_REQUESTS_PER_SECOND": 4,
        "EVERYRUN_CHUNK_MAX_INPUTS": PER_CHUNK,
        "EVERYRUN_DISPATCH_DEADLINE": 5,
        "EVERYRUN_CALL_TIMEOUT": 8,
        "EVERYRUN_DOUBT_WINDOW": 5,
        "EVERYRUN_SWEEP_IN_DOUBT_EVERY": 1,
        "EVERYRUN_POLL_FIRST_AFTER": 5,
        "EVERYRUN_POLL_EVERY": 2,
        **more,
    }
    started = {name: service(name, **variables) for name in ("submission", "processor", "reconciler")}
    started["bridge"] = service("bridge", **variables, EVERYRUN_BRIDGE_LISTEN=f"127.0.0.1:{port}")
    started["bridge"].url = f"http://127.0.0.1:{port}"
    for process in started.values():
        await process.ready()
    return started


async def hand_in(submission: ServiceProcess, workflow: str, count: int) -> str:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as http:
        where = {"submission_url": submission.url, "workflow_id": workflow}
        return str((await job.submit(http, where, count))["submission_id"])


async def take_in_for(settings: Settings, workflow: str, count: int) -> str:
    """Accept inputs for a workflow that the emulator does not have: over HTTP they would be refused."""

    async def body() -> AsyncIterator[bytes]:
        for n in range(count):
            yield msgspec.json.encode({"id": str(n), "file": {"url": f"https://files.example.com/{n}.pdf"}}) + b"\n"

    how: dict[str, Any] = {"workflow_id": workflow, "workflow_version": None, "priority": 90, "idempotency_key": None}
    async with await open_pool(settings, name="test") as pool:
        return (await accept_submission(pool, settings, parse.read_rows(parse.NDJSON, body()), **how)).submission_id


async def chunks_of(dsn: str, submission_id: str) -> dict[str, str]:
    """Return the state of each chunk in this database."""
    connection = await asyncpg.connect(dsn)
    try:
        return dict(
            await connection.fetch(
                "select chunk, state from everyrun_queue.chunks where submission_id = $1", submission_id
            )
        )
    finally:
        await connection.close()


async def until_sent(dsn: str, submission_id: str, least: int) -> None:
    async def sent() -> bool:
        return list((await chunks_of(dsn, submission_id)).values()).count("submitted") >= least

    await eventually(sent, f"{least} chunks are sent", 90)


async def replace(postgres: Callable[[str], str], database: str, dump: Path) -> str:
    """Replace the database with the dump, under the services; return the dsn of a second copy."""
    name = urlsplit(database).path.strip("/")
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"create database {name}_new")
    await asyncio.to_thread(psql, postgres(f"{name}_new"), dump)
    await admin.execute(f"create database {name}_then template {name}_new")
    await admin.execute(f"drop database {name} with (force)")
    await admin.execute(f"alter database {name}_new rename to {name}")
    await admin.close()
    return postgres(f"{name}_then")


async def report(settings: Settings, submission_id: str) -> dict[str, Any]:
    """Return the report of the query service; empty while the database is unavailable."""
    try:
        async with await open_pool(settings, name="test") as pool:
            transport = httpx.ASGITransport(query_api(settings, pool))
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://query", headers=headers) as http:
                answer = await http.get(f"/v1/submissions/{submission_id}/report")
                return dict(answer.json()) if answer.status_code == 200 else {}
    except AWAY:
        return {}


@pytest.mark.timeout(280)
async def test_restoring_a_database_dump_during_a_job_sends_nothing_twice(
    service: Any,
    emulator_with: Callable[..., EmulatorProcess],
    settings: Settings,
    postgres: Callable[[str], str],
    database: str,
    tmp_path: Path,
) -> None:
    emulator = emulator_with("--run-seconds", "0.1:0.5")
    services = await all_services(service, emulator)
    settings.api_token = SecretStr(TOKEN)
    connection = await asyncpg.connect(database)
    await connection.execute(
        "insert into everyrun_queue.paused (kind, id, reason, since) values ('workflow', $1, 'as after a 402', now())",
        OTHER,
    )
    await connection.close()

    first = await hand_in(services["submission"], WORKFLOW, CHUNKS * PER_CHUNK)
    await until_sent(database, first, 3)
    dump = tmp_path / "whole.sql"
    await asyncio.to_thread(subprocess.run, [TOOLS / "pg_dump", "-f", dump, database], check=True, capture_output=True)
    after_the_dump = await take_in_for(settings, OTHER, 7)

    async def accepted() -> bool:
        return (await report(settings, after_the_dump)).get("expected") == 7

    await eventually(accepted, "the tables know of the submission that the dump does not have", 60)
    sent_then = list((await chunks_of(database, first)).values()).count("submitted")
    await until_sent(database, first, min(sent_then + 2, CHUNKS))

    then = await replace(postgres, database, dump)
    remembered = await chunks_of(then, first)
    assert {"submitted", "waiting"} <= set(remembered.values()), "the dump was taken in the middle of the job"
    assert await chunks_of(then, after_the_dump) == {}, "the dump is older than the second submission"
    more_was_sent = {line["metadata"]["everyrun:input"]["chunk"] for line in emulator.truth()}
    assert more_was_sent > {chunk for chunk, state in remembered.items() if state == "submitted"}

    async def settled() -> bool:
        said = await report(settings, first)
        return bool(said.get("balanced")) and said["open"] == 0

    await eventually(settled, "every input is accounted for", 120)
    batches = defaultdict(set)
    for line in emulator.truth():
        batches[line["metadata"]["everyrun:input"]["chunk"]].add(line["batch_id"])
    assert {chunk: len(ids) for chunk, ids in batches.items()} == dict.fromkeys(remembered, 1)
    stats = httpx.get(emulator.url + "/_emulator/stats").json()
    assert stats["batches"] == CHUNKS, "no batch was made that has no run"
    assert stats["requests"]["run"] == CHUNKS, "no call was made twice"
    lost = await report(settings, after_the_dump)
    assert (lost["open"], lost["overdue_by_reason"]) == (7, {"queue_lost": 7})

    for name in ("submission", "reconciler", "bridge"):
        services[name].terminate()
    await until_acknowledged(settings)
    await are_as_undisturbed(settings, postgres)
    assert services["processor"].process.poll() is None, "the processor went on all the while"
    admin = await asyncpg.connect(postgres("everyrun"))
    await admin.execute(f"drop database {urlsplit(then).path.strip('/')} with (force)")
    await admin.close()
