"""Every response matches the OpenAPI document; ``answers_fit`` of the conftest compares each one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from everyrun.query import live
from everyrun.query.api import query_api
from everyrun.replay.api import replay_api
from everyrun.replay.history.event_search import IndexBehindError
from everyrun.replay.history.historian import History, HistoryEvent, NoHistoryError
from everyrun.settings import Settings
from everyrun.store import tokens
from everyrun.store.pool import connection_setup
from everyrun.submission.api.submissions import submission_api
from everyrun.submission.decisions.doubts import Doubts
from everyrun.submission.recovery.queue_recovery import QueueRecovery
from everyrun.waiting import Waiting
from tests.conftest import eventually
from tests.integration.conftest import CHECKED
from tests.integration.tables import connect
from tests.integration.test_apply import feed
from tests.integration.test_status import CHUNKS, Installation
from tests.records import a_world

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
ROW = b'{"id": "%d", "file": {"url": "https://files.example/a.pdf"}}\n'
NDJSON = {"content-type": "application/x-ndjson"}


def told(history: object) -> Any:
    """A fake historian that returns a value or raises an error."""

    async def answer(_identifier: str) -> Any:
        if isinstance(history, Exception):
            raise history
        return history

    return lambda: SimpleNamespace(history=answer)


class Here:
    """The three APIs over one database with rows of every kind."""

    def __init__(self, database: str, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.settings = Settings(postgres_dsn=SecretStr(database), api_token=SecretStr(TOKEN), overdue_after=1)
        self.recovery = QueueRecovery(self.settings, pool)
        nothing: Any = None
        accepted = asyncio.Event()
        doubts = Doubts(pool, nothing, self.recovery, nothing, "inst_test")
        self.query = query_api(self.settings, pool)
        self.submission = submission_api(self.settings, pool, accepted, nothing, doubts, self.recovery)
        self.replay = self.replaying(NoHistoryError("x"))

    def replaying(self, history: object) -> FastAPI:
        return replay_api(self.settings, self.pool, told(history))

    async def answered(self, app: FastAPI, path: str, token: str, status: int) -> Any:
        """Return the body of the response to a GET if it has this status, else None."""
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", headers=headers) as http:
            answer = await http.get(path)
        return answer.json() if answer.status_code == status else None

    async def call(self, app: FastAPI, method: str, path: str, status: int, token: str = TOKEN, **more: Any) -> Any:
        headers = {"authorization": f"Bearer {token}", **more.pop("headers", {})}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            answer = await http.request(method, path, headers=headers, **more)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.text


@pytest.fixture
async def here(database: str) -> AsyncIterator[Here]:
    connection = await connect(database)
    for seed in range(4):
        await feed(connection, a_world(random.Random(seed), of=f"{seed}_"), random.Random(seed))
    await connection.execute(
        "insert into quarantine (source, topic, reason, raw, headers, first_seen)"
        " values ('webhook/1', 'webhook', 'not JSON', 'x', '[[\"a\", \"b\"]]', now())"
    )
    await connection.close()
    CHECKED.clear()
    async with asyncpg.create_pool(database, min_size=1, max_size=8, init=connection_setup) as pool:
        installation = Installation(pool, Settings(postgres_dsn=SecretStr(database), api_token=SecretStr(TOKEN)))
        await installation.submission("sub_queue", CHUNKS)
        await pool.execute("insert into everyrun_queue.paused values ('workflow', 'w', '402', null, now())")
        yield Here(database, pool)


def without_success(app: FastAPI) -> list[tuple[str, str]]:
    """Return the routes of which no success was compared with the document."""
    seen = {(method, path) for method, path, status in CHECKED.get(app.title, ()) if status < 300}
    every = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    return sorted(every - seen)


async def test_query_responses_match_their_openapi_document(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stream of events ends after its first one.
    monkeypatch.setattr(live, "_LONGEST", 0.0)

    async def get(path: str, expected: int = 200, **params: Any) -> Any:
        return await here.call(here.query, "GET", path, expected, params=params)

    for row in await here.pool.fetch("select submission_id from everyrun.submissions"):
        of = f"/v1/submissions/{row['submission_id']}"
        for what in ("report", "progress", "batches", "counts", "counts?text=a", "export", "events"):
            await get(f"{of}/{what}")
    for row in await here.pool.fetch("select batch_id from everyrun.batches where batch_id is not null"):
        await get(f"/v1/batches/{row['batch_id']}")
    page = await get("/v1/results", limit=2, include="run")
    assert page["next_cursor"]
    await get("/v1/results", limit=2, include="run", cursor=page["next_cursor"])
    for status in ("WAITING", "SENDING", "IN_DOUBT"):
        assert (await get("/v1/results", status=status))["results"]
    for row in await here.pool.fetch("select input_id from everyrun.results"):
        await get(f"/v1/results/{row['input_id']}")
        await get(f"/v1/tries/{row['input_id']}")
    await get("/v1/results/sub_queue:i3")
    overdue = await get("/v1/overdue")
    assert overdue["inputs"]
    assert overdue["unsent"]
    assert (await get("/v1/unmatched"))["unmatched"]
    assert (await get("/v1/quarantine"))["messages"]
    await get("/v1/quarantine/reasons")
    await get("/v1/decisions")
    await get("/v1/quarantine/webhook/1")
    assert without_success(here.query) == []

    for missing in ("submissions/x/report", "submissions/x/progress", "submissions/x/batches", "batches/x"):
        await get(f"/v1/{missing}", 404)
    await get("/v1/results/x", 404)
    await get("/v1/quarantine/x", 404)
    for wrong in ({"limit": 0}, {"cursor": "x"}, {"include": "all"}, {"status": "failed"}):
        await get("/v1/results", 422, **wrong)
    await errors_of_every_call(here, here.query, "/v1/results")


async def errors_of_every_call(here: Here, app: FastAPI, path: str) -> None:
    """Check the responses that any call can have before its route: 401, 403, and 503 in a replaced database."""
    await here.pool.execute("update everyrun_queue.token_recovery set incarnation = everyrun_queue.incarnation()")
    await eventually(lambda: here.answered(app, path, "wrong", 401), "tokens are read again")
    narrow = await made(here, "submit")
    refused = await eventually(lambda: here.answered(app, path, narrow, 403), "the new token is known")
    assert refused["scope"] in ("read", "operate")
    await here.pool.execute("update everyrun_queue.token_recovery set incarnation = 'another'")
    await eventually(lambda: here.answered(app, path, narrow, 503), "no token is valid in another incarnation")


async def made(here: Here, scope: tokens.Scope) -> str:
    async with here.pool.acquire() as connection:
        return await tokens.create(connection, "a test", [scope], None, "a test")


async def test_every_answer_of_the_submission_service_fits_its_document(here: Here) -> None:
    app, recovery = here.submission, here.recovery

    async def restored() -> str:
        return str(await here.pool.fetchval("select everyrun_queue.incarnation()"))

    recovery.ensure_caught_up = restored  # type: ignore[method-assign, assignment]
    submit = "/v1/submissions?workflow_id=w"
    one = {"content": ROW % 1, "headers": {**NDJSON, "idempotency-key": "k"}}
    accepted = await here.call(app, "POST", submit, 202, **one)
    await here.call(app, "POST", submit, 409, **{**one, "content": ROW % 2})
    await here.call(app, "POST", submit, 422, content=b"{}\n", headers=NDJSON)
    await here.call(app, "POST", submit, 422, content=b"", headers=NDJSON)
    await here.call(app, "POST", submit, 422, content=b"no json", headers={"content-type": "application/json"})
    await here.call(app, "POST", "/v1/submissions", 422, content=ROW % 1, headers=NDJSON)
    await here.call(app, "POST", submit, 415, content=b"<xml/>", headers={"content-type": "text/xml"})
    batch = "/v1/batches?workflow_id=w&batch_id=b_1"
    await here.call(app, "POST", batch, 202, content=ROW % 1, headers=NDJSON)
    await here.call(app, "POST", batch, 409, content=ROW % 2, headers=NDJSON)
    listed = await here.call(app, "GET", "/v1/submissions?limit=1", 200)
    assert listed["next_cursor"]
    for path in (accepted["submission_id"], "sub_queue"):
        await here.call(app, "GET", f"/v1/submissions/{path}", 200)
    await here.call(app, "GET", "/v1/submissions/sub_queue/retries", 200)
    assert (await here.call(app, "GET", "/v1/doubts", 200))["doubts"]
    for chunk in ("held", "queued", "doubt"):
        await here.call(app, "GET", f"/v1/doubts/{chunk}", 200)
    assert (await here.call(app, "GET", "/v1/workflows/paused", 200))["workflows"]
    assert (await here.call(app, "GET", "/v1/workflows/check?workflow_id=w", 200))["workflow_id"] == "w"
    sync = "/v1/syncs?workflow_id=w&source=s3://b"
    synced = b'{"id":"a","file":{"object":"s3://bucket/a.pdf"},"synced":{"version":"1","was":null}}\n'
    given = {"content": synced, "headers": {**NDJSON, "idempotency-key": "k-sync"}}
    await here.call(app, "POST", sync, 202, **given)
    await here.call(app, "POST", sync, 409, **{**given, "headers": {**NDJSON, "idempotency-key": "k-sync-2"}})
    assert (await here.call(app, "GET", sync, 200))["objects"]
    preview = {"json": {"reason": "a test", "dry_run": True}}
    counts = await here.call(app, "POST", "/v1/submissions/sub_queue/cancellations", 202, **preview)
    assert counts["cancellation_id"] is None
    assert sum(counts["inputs"].values())
    await here.pool.execute(
        "insert into everyrun_queue.cancellations"
        " (cancellation_id, submission_id, scope, positions, requested_by, reason, requested_at)"
        " select 'can_' || n, 'sub_queue', 'inputs', '{[1,2]}', 'ann', 'a test', now() from generate_series(1, 2) n"
    )
    page = await here.call(app, "GET", "/v1/cancellations?limit=1", 200)
    assert (page["cancellations"][0]["cancellation_id"], page["next_cursor"]) == ("can_2", "can_2")
    await here.call(app, "GET", "/v1/cancellations/can_1", 200)
    # Decisions need Kafka: test_doubts and test_quarantine make them, and their responses are compared too.
    assert [path for method, path in without_success(app) if method == "GET"] == []

    for missing in ("submissions/x", "doubts/x", "cancellations/x"):
        await here.call(app, "GET", f"/v1/{missing}", 404)
    why = {"json": {"reason": "a test"}}
    for missing in ("workflows/x/pause", "workflows/x/resume", "submissions/x/pause", "submissions/x/resume"):
        await here.call(app, "POST", f"/v1/{missing}", 404, **why)
    for missing in ("submissions/x/cancellations", "batches/x/cancellations"):
        await here.call(app, "POST", f"/v1/{missing}", 404, **why)
    unknown = {"json": {"reason": "a test", "ids": ["nobody"]}}
    await here.call(app, "POST", "/v1/submissions/sub_queue/cancellations", 422, **unknown)
    await here.call(app, "POST", "/v1/submissions/sub_queue/cancellations", 422, json={"reason": "x", "ids": []})
    await here.call(app, "POST", "/v1/doubts/queued/resend", 409, **why)
    await here.call(app, "POST", "/v1/doubts/queued/discard", 409, **why)
    await here.call(app, "POST", "/v1/doubts/x/discard", 404, **why)
    await here.call(app, "POST", "/v1/doubts/x/discard", 422, json={})
    await here.call(app, "POST", "/v1/doubts/x/discard", 413, content=b"x" * ((16 << 20) + 1))
    await errors_of_every_call(here, app, "/v1/submissions")


async def test_replay_responses_match_their_openapi_document(here: Here) -> None:
    job = await here.call(here.replay, "POST", "/v1/jobs", 202, json={"kind": "audit"})
    await here.call(here.replay, "GET", "/v1/jobs", 200)
    await here.call(here.replay, "GET", f"/v1/jobs/{job['job_id']}", 200)
    await here.call(here.replay, "POST", f"/v1/jobs/{job['job_id']}/cancel", 200)
    event = HistoryEvent("now", "then", "run-observed", "/bridge", "runs", 0, 7, None, "first seen", "PROCESSED")
    waiting = Waiting("WAITING", "queued", 1, "waits for its turn", None, None)
    story = History("sub:1", "input", "WAITING", None, None, None, None, [event], [], waiting)
    await here.call(here.replaying(story), "GET", "/v1/history/sub:1", 200)
    assert without_success(here.replay) == []

    await here.call(here.replay, "GET", "/v1/history/x", 404)
    behind = await here.call(here.replaying(IndexBehindError(3, 9)), "GET", "/v1/history/x", 503)
    assert (behind["indexed"], behind["total"]) == (3, 9)
    await here.call(here.replay, "POST", f"/v1/jobs/{job['job_id']}/cancel", 409)
    await here.call(here.replay, "GET", "/v1/jobs/x", 404)
    await here.call(here.replay, "POST", "/v1/jobs", 422, json={"kind": "other"})
    await errors_of_every_call(here, here.replay, "/v1/jobs")
