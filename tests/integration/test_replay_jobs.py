"""Jobs over HTTP: request, follow, cancel, resume after a kill."""

from __future__ import annotations

import random
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess
from tests.integration.test_asof import append, rows
from tests.integration.test_audit import append as append_and_apply
from tests.integration.test_rebuild import connect, contents, ends
from tests.records import a_world, apart

pytestmark = pytest.mark.stack

TOKEN = "ert_of_this_test"


def client(service: ServiceProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)


async def ended(http: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        seen = (await http.get(f"/v1/jobs/{job['job_id']}")).json()
        return seen if seen["ended_at"] else None

    seen: Any = await eventually(look, f"{job} ends", 60)
    return seen


async def test_jobs_run_in_order_and_report_their_outcomes(
    settings: Settings, service: Callable[..., ServiceProcess]
) -> None:
    await append_and_apply(settings, *apart(a_world(random.Random(3), chunks=5, inputs=6), "3"))
    replay = await service("replay", EVERYRUN_API_TOKEN=TOKEN).ready()
    total = sum((await ends(settings)).values())
    async with client(replay) as http:
        requests = [
            {"kind": "rebuild", "schema": "mine"},
            {"kind": "audit"},
            {"kind": "rebuild", "swap": True},
            {"kind": "as-of", "moment": "2100-01-01T00:00:00Z", "what": "row", "id": "sub_3_0:unknown"},
            {"kind": "rebuild", "until": "runs:0=1000000"},
        ]
        jobs = [await http.post("/v1/jobs", json=job) for job in requests]
        assert [job.status_code for job in jobs] == [202] * len(jobs)
        rebuilt, audited, swapped, as_of, failed = [await ended(http, job.json()) for job in jobs]
        assert (rebuilt["state"], rebuilt["records_done"], rebuilt["records_total"]) == ("DONE", total, total)
        assert rebuilt["outcome"]["records"] == total
        assert audited["outcome"]["agrees"]
        assert audited["asked_by"]
        assert (swapped["state"], swapped["outcome"]["left_over"]) == ("DONE", None)
        assert as_of["outcome"]["row"] is None
        assert (failed["state"], "ends at" in failed["message"]) == ("FAILED", True)
        listed = (await http.get("/v1/jobs")).json()["jobs"]
        assert {job["job_id"] for job in listed} == {job.json()["job_id"] for job in jobs}
        swap_until = {"kind": "rebuild", "swap": True, "until": "runs:0=1"}
        for wrong in ({"kind": "other"}, {"kind": "audit", "x": 1}, {"kind": "rebuild", "until": "noon"}, swap_until):
            assert (await http.post("/v1/jobs", json=wrong)).status_code == 422
        assert (await http.get("/v1/jobs/job_unknown")).status_code == 404
        assert (await http.post(f"/v1/jobs/{failed['job_id']}/cancel")).status_code == 409
        assert (await httpx.AsyncClient().get(replay.url + "/v1/jobs")).status_code == 401


async def test_events_are_replayed_and_archived_as_jobs(
    settings: Settings, service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    await append(settings, apart(a_world(random.Random(4), chunks=3, inputs=4), "4"))
    total = sum((await ends(settings)).values())
    target = settings.topic_prefix + "again"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(target, 8, 1)])
    await admin.close()
    archive_to = tmp_path / "archive"
    variables = {"EVERYRUN_API_TOKEN": TOKEN, "EVERYRUN_ARCHIVE_TO": archive_to}
    replay = await service("replay", **variables).ready()
    async with client(replay) as http:

        async def outcome(**job: Any) -> dict[str, Any]:
            answer = await http.post("/v1/jobs", json=job)
            assert answer.status_code == 202, answer.text
            return await ended(http, answer.json())

        again = await outcome(kind="replay", to=target)
        assert (again["state"], again["outcome"]["published"]) == ("DONE", total)
        records = await read_topic(settings, "again")
        assert len(records) == total
        assert all("ce_everyrunreplay" in headers for _, headers in records)
        own = await outcome(kind="replay", to=settings.topic("runs"))
        assert (own["state"], "a topic of this Everyrun" in own["message"]) == ("FAILED", True)
        elsewhere = await outcome(kind="replay", to="https://example.com/hook")
        assert (elsewhere["state"], "EVERYRUN_REPLAY_ORIGINS" in elsewhere["message"]) == ("FAILED", True)
        kept = await outcome(kind="archive")
        assert (kept["state"], kept["records_done"]) == ("DONE", kept["records_total"])
        seen = (await outcome(kind="archive-verify", against_log=True, head=kept["outcome"]["hash"]))["outcome"]
        assert (seen["whole"], seen["records"], seen["notes"]) == (True, kept["outcome"]["records"], [])
        shutil.rmtree(archive_to)
        lost = await outcome(kind="archive-verify")
        assert (lost["state"], bool(lost["message"])) == ("FAILED", True)
        for wrong in ({"to": "events.ndjson"}, {"to": target, "from_offsets": "runs"}, {"to": target, "topics": ["x"]}):
            assert (await http.post("/v1/jobs", json={"kind": "replay", **wrong})).status_code == 422


async def test_a_job_without_the_needed_right_fails_and_the_next_job_runs(
    settings: Settings, service: Callable[..., ServiceProcess]
) -> None:
    """A retry does not help a role that may not create schemas."""
    dsn = settings.postgres_dsn.get_secret_value()
    admin = await asyncpg.connect(dsn)
    role = f"reader_{random.randrange(10**9)}"
    await admin.execute(f"create role {role} login password 'of-this-test'")
    try:
        for schema in ("everyrun", "everyrun_queue", "everyrun_index"):
            await admin.execute(f"grant usage on schema {schema} to {role}")
            await admin.execute(f"grant all on all tables in schema {schema} to {role}")
        as_reader = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(dsn).query))
        params = {"user": role, "password": "of-this-test"}
        parts = urllib.parse.urlsplit(dsn)
        query = urllib.parse.urlencode({**as_reader, **params})
        netloc = parts.netloc.rpartition("@")[2]
        as_role = urllib.parse.urlunsplit(parts._replace(netloc=netloc, query=query))
        replay = await service("replay", EVERYRUN_API_TOKEN=TOKEN, EVERYRUN_POSTGRES_DSN=as_role).ready()
        async with client(replay) as http:
            first, second = [(await http.post("/v1/jobs", json={"kind": "rebuild"})).json() for _ in range(2)]
            for job in (first, second):
                done = await ended(http, job)
                assert (done["state"], "InsufficientPrivilege" in done["message"]) == ("FAILED", True)
    finally:
        await admin.execute(f"drop owned by {role}; drop role {role}")
        await admin.close()


async def test_a_job_resumes_after_a_kill_and_a_waiting_one_can_be_cancelled(
    settings: Settings, service: Callable[..., ServiceProcess]
) -> None:
    for seed in range(8):
        await append(settings, apart(a_world(random.Random(seed), chunks=8, inputs=10), str(seed)))
    first = await service("replay", EVERYRUN_API_TOKEN=TOKEN).ready()
    async with client(first) as http:
        job = (await http.post("/v1/jobs", json={"kind": "rebuild", "fresh": True})).json()
        waiting = (await http.post("/v1/jobs", json={"kind": "audit"})).json()

        async def runs() -> bool:
            return (await http.get(f"/v1/jobs/{job['job_id']}")).json()["state"] == "RUNNING"

        await eventually(runs, "the job runs", 60)
        assert (await http.post(f"/v1/jobs/{waiting['job_id']}/cancel")).json()["state"] == "CANCELLED"
    first.kill()
    second = await service("replay", EVERYRUN_API_TOKEN=TOKEN).ready()
    async with client(second) as http:
        assert (await ended(http, job))["state"] == "DONE"
        assert (await ended(http, waiting))["state"] == "CANCELLED"
    connection = await connect(settings, "everyrun_rebuild")
    assert await connection.fetchval("select sum(next_offset) from applied_offsets") == sum(
        (await ends(settings)).values()
    )
    await connection.close()
    assert rows(await contents(settings, "everyrun_rebuild"))["results"]
