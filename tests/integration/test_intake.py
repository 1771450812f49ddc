"""Accepting submissions on a real Postgres: all rows are stored unchanged, or none."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from pydantic import SecretStr

from everyrun.extend.client import ExtendError, Page
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission.api.submissions import submission_api
from everyrun.submission.intake.accept import (
    AcceptedSubmission,
    BadRowsError,
    IdempotencyConflictError,
    SubmittedBeforeError,
    accept_submission,
)
from everyrun.submission.intake.parse import NDJSON, UploadError, read_rows
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.recovery.queue_recovery import QueueRecovery
from tests.conftest import eventually

pytestmark = pytest.mark.stack

AWKWARD = ["plain", "back\\slash", "\\N", "\\.", "tab\\t", "q'\"", "\u00e9\U0001f600", "%s {}"]


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    async with await open_pool(settings, name="test") as pool:
        yield pool


async def hand_in(
    pool: asyncpg.Pool, settings: Settings, lines: list[bytes], key: str | None = None, once: bool = False
) -> AcceptedSubmission:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(lines), 3):
            yield b"".join(lines[start : start + 3])

    how: dict[str, Any] = {"workflow_id": "w", "workflow_version": None, "priority": 90, "idempotency_key": key}
    return await accept_submission(pool, settings, read_rows(NDJSON, body()), once=once, **how)


def line(id: str, **metadata: Any) -> bytes:
    return msgspec.json.encode({"id": id, "file": {"text": f"of\t{id}\n"}, "metadata": metadata}) + b"\n"


async def counts(pool: asyncpg.Pool) -> tuple[int, ...]:
    tables = ("submissions", "inputs", "chunks")
    return tuple([await pool.fetchval(f"select count(*) from everyrun_queue.{name}") for name in tables])


async def test_every_row_is_stored_unchanged(pool: asyncpg.Pool, settings: Settings) -> None:
    settings.chunk_max_inputs = 3
    accepted = await hand_in(pool, settings, [line(id, **{id: id + "\n\t\\"}) for id in AWKWARD])
    assert (accepted.expected, accepted.batches) == (8, 3)
    kept = await pool.fetch("select * from everyrun_queue.inputs order by position")
    assert [row["external_id"] for row in kept] == AWKWARD
    assert [msgspec.json.decode(row["file"]) for row in kept] == [{"text": f"of\t{id}\n"} for id in AWKWARD]
    assert [msgspec.json.decode(row["metadata"]) for row in kept] == [{id: id + "\n\t\\"} for id in AWKWARD]
    assert [row["position"] for row in kept] == list(range(1, 9))


async def test_one_bad_row_refuses_the_whole_upload(pool: asyncpg.Pool, settings: Settings) -> None:
    with pytest.raises(BadRowsError) as bad:
        await hand_in(pool, settings, [line("a"), b'{"id": "b"}\n', b"\n", line("c"), b"not json\n", line("a")])
    found = [(row.row, row.line, row.id, row.field) for row in bad.value.rows]
    # A duplicate id is listed with the other bad rows.
    assert found == [(2, 2, "b", "file"), (4, 5, None, ""), (5, None, "a", "id")]
    assert bad.value.count == 3
    assert await counts(pool) == (0, 0, 0)


async def test_a_duplicate_id_is_named_with_both_rows(pool: asyncpg.Pool, settings: Settings) -> None:
    with pytest.raises(BadRowsError) as bad:
        await hand_in(pool, settings, [line("a"), line("b"), line("a"), line("a")])
    assert [(row.row, row.id, row.field) for row in bad.value.rows] == [(3, "a", "id"), (4, "a", "id")]
    assert bad.value.count == 2
    assert all("row 1" in row.reason for row in bad.value.rows)
    assert await counts(pool) == (0, 0, 0)


async def test_an_interrupted_upload_stores_nothing_and_keeps_the_connection(
    pool: asyncpg.Pool, settings: Settings
) -> None:
    async def broken() -> AsyncIterator[Any]:
        yield [(1, {"file": {"text": "x"}})]
        raise UploadError("the caller went away")

    how: dict[str, Any] = {"workflow_id": "w", "workflow_version": None, "priority": 90, "idempotency_key": None}
    for _ in range(15):
        with pytest.raises(UploadError, match="went away"):
            await accept_submission(pool, settings, broken(), **how)
    assert await counts(pool) == (0, 0, 0)
    assert (await hand_in(pool, settings, [line("a")])).expected == 1


async def test_a_repeated_upload_with_the_same_key_is_the_same_submission(
    pool: asyncpg.Pool, settings: Settings
) -> None:
    first = await hand_in(pool, settings, [line("a"), line("b")], key="k")
    assert await hand_in(pool, settings, [line("a"), line("b")], key="k") == first
    assert await counts(pool) == (1, 2, 1)
    with pytest.raises(IdempotencyConflictError):
        await hand_in(pool, settings, [line("a"), line("c")], key="k")
    assert await counts(pool) == (1, 2, 1)
    assert (await hand_in(pool, settings, [line("a"), line("b")])).submission_id != first.submission_id


async def test_with_once_rows_that_were_submitted_before_are_refused(pool: asyncpg.Pool, settings: Settings) -> None:
    first = await hand_in(pool, settings, [line("a"), line("b")], key="k", once=True)
    assert await hand_in(pool, settings, [line("a"), line("b")], key="k", once=True) == first
    with pytest.raises(SubmittedBeforeError, match=f"2 rows were submitted before: {first.submission_id}"):
        await hand_in(pool, settings, [line("a"), line("b")], key="l", once=True)
    assert await counts(pool) == (1, 2, 1)
    await hand_in(pool, settings, [line("a"), line("c")], once=True)
    again = await hand_in(pool, settings, [line("a"), line("b")])
    with pytest.raises(SubmittedBeforeError, match=again.submission_id):
        await hand_in(pool, settings, [line("a"), line("b")], once=True)
    # A submission restored from the log has only the redacted hash.
    await pool.execute("update everyrun_queue.submissions set full_hash = null")
    with pytest.raises(SubmittedBeforeError, match=again.submission_id):
        await hand_in(pool, settings, [line("a"), line("b")], once=True)


async def test_rows_with_different_query_strings_are_different(pool: asyncpg.Pool, settings: Settings) -> None:
    def row(month: int) -> bytes:
        return msgspec.json.encode({"file": {"url": f"https://files.example.com/report?month={month}"}}) + b"\n"

    await hand_in(pool, settings, [row(1)], once=True)
    await hand_in(pool, settings, [row(2)], once=True)
    with pytest.raises(SubmittedBeforeError):
        await hand_in(pool, settings, [row(1)], once=True)


async def test_of_two_equal_uploads_at_once_one_is_refused(pool: asyncpg.Pool, settings: Settings) -> None:
    calls = [hand_in(pool, settings, [line("a"), line("b")], once=True) for _ in range(4)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["AcceptedSubmission"] + ["SubmittedBeforeError"] * 3


async def test_an_upload_without_rows_is_refused(pool: asyncpg.Pool, settings: Settings) -> None:
    with pytest.raises(BadRowsError) as bad:
        await hand_in(pool, settings, [])
    assert bad.value.count == 0


@pytest.mark.parametrize("path", ["/v1/submissions", "/v1/batches"])
async def test_slow_uploads_leave_connections_for_others(pool: asyncpg.Pool, settings: Settings, path: str) -> None:
    settings.api_token = SecretStr("token")
    accepted = asyncio.Event()
    unused: Any = None
    app = submission_api(settings, pool, accepted, unused, unused, QueueRecovery(settings, pool))
    go_on = asyncio.Event()

    async def slow(number: int) -> AsyncIterator[bytes]:
        yield line(f"first{number}")
        await go_on.wait()
        yield line(f"second{number}")

    headers = {"authorization": "Bearer token", "content-type": NDJSON}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://submission", headers=headers) as http:

        async def upload(number: int) -> httpx.Response:
            query = {"workflow_id": "w"} | ({"batch_id": f"batch_{number}"} if path == "/v1/batches" else {})
            return await http.post(path, params=query, content=slow(number))

        under_way = [asyncio.create_task(upload(number)) for number in range(pool.get_max_size() + 5)]
        done: list[httpx.Response] = []

        async def refused() -> bool:
            done[:] = [task.result() for task in under_way if task.done()]
            return len(done) == len(under_way) - 4

        await eventually(refused, "all but four uploads are refused")
        assert {(answer.status_code, answer.json()["code"]) for answer in done} == {(503, "BUSY")}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in done)
        assert (await http.get("/v1/submissions")).json()["submissions"] == []
        go_on.set()
        taken = [answer.status_code for answer in await asyncio.gather(*under_way)]
        assert (taken.count(202), taken.count(503)) == (4, len(under_way) - 4)
        assert (await upload(1000)).status_code == 202


@pytest.fixture
async def http(pool: asyncpg.Pool, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    settings.api_token = SecretStr("token")
    accepted = asyncio.Event()
    unused: Any = None
    transport = httpx.ASGITransport(
        submission_api(settings, pool, accepted, unused, unused, QueueRecovery(settings, pool))
    )
    headers = {"authorization": "Bearer token", "content-type": NDJSON}
    query = {"workflow_id": "w"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://submission", headers=headers, params=query
    ) as client:
        yield client


async def kept(pool: asyncpg.Pool) -> list[str]:
    return [row["external_id"] for row in await pool.fetch("select external_id from everyrun_queue.inputs order by 1")]


async def test_a_gzip_body_is_unpacked(http: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    # In two gzip members, as appending to a compressed file gives.
    body = gzip.compress(line("a") + line("b")[:10]) + gzip.compress(line("b")[10:])
    answer = await http.post("/v1/submissions", content=body, headers={"content-encoding": "gzip"})
    assert (answer.status_code, await kept(pool)) == (202, ["a", "b"])


class Account:
    """A fake Extend with one workflow, or without an answer."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    async def get_workflow(self, workflow_id: str, within: float) -> bytes:
        self.asked += 1
        if self.away:
            raise ExtendError(503, "UNREADABLE", "bad gateway")
        if workflow_id != "workflow_invoices":
            raise ExtendError(404, "NOT_FOUND", "no such workflow", from_extend=True)
        return b"{}"

    async def list_workflows(self, within: float) -> Page:
        return Page([{"id": "workflow_invoices", "name": "Invoices"}], None, datetime.now(UTC))

    async def get_workflow_version(self, workflow_id: str, version: str, within: float) -> bytes:
        if self.away:
            raise ExtendError(503, "UNREADABLE", "bad gateway")
        if version not in ("1", "2", "draft"):
            raise ExtendError(404, "NOT_FOUND", "no such version", from_extend=True)
        return b"{}"

    async def list_workflow_versions(self, workflow_id: str, within: float) -> Page:
        return Page([{"version": "draft"}, {"version": "2"}, {"version": "1"}], None, datetime.now(UTC))


async def test_an_unknown_workflow_is_refused_at_intake(pool: asyncpg.Pool, settings: Settings) -> None:
    settings.api_token = SecretStr("token")
    accepted = asyncio.Event()
    unused: Any = None
    extend, now = Account(), [0.0]
    workflows = Workflows(extend, lambda: now[0])
    app = submission_api(settings, pool, accepted, unused, unused, QueueRecovery(settings, pool), workflows=workflows)
    headers = {"authorization": "Bearer token", "content-type": NDJSON}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://submission", headers=headers
    ) as http:

        async def upload(workflow_id: str, **headers: str) -> httpx.Response:
            query = {"workflow_id": workflow_id}
            return await http.post("/v1/submissions", content=line("a"), params=query, headers=headers)

        refused = await upload("workflow_invocies")
        body = refused.json()
        assert (refused.status_code, body["code"], body["did_you_mean"]) == (
            422,
            "UNKNOWN_WORKFLOW",
            ["workflow_invoices"],
        )
        assert "'workflow_invocies'" in body["message"]
        assert "did you mean workflow_invoices (Invoices)?" in body["message"]
        query = {"workflow_id": "workflow_invocies", "batch_id": "batch_1"}
        assert (await http.post("/v1/batches", content=line("a"), params=query)).json()["code"] == "UNKNOWN_WORKFLOW"
        assert await kept(pool) == []
        assert extend.asked == 1
        taken = [await upload("workflow_invoices") for _ in range(3)]
        assert [(answer.status_code, "workflow_unchecked" in answer.json()) for answer in taken] == [(202, False)] * 3
        assert extend.asked == 2
        version = {"workflow_id": "workflow_invoices", "workflow_version": "99"}
        refused = await http.post("/v1/submissions", content=line("a"), params=version)
        assert (refused.status_code, refused.json()["code"]) == (422, "UNKNOWN_VERSION")
        assert (refused.json()["field"], refused.json()["did_you_mean"]) == ("workflow_version", ["draft", "2", "1"])
        # The command line makes the same check before it uploads files.
        checked = await http.get("/v1/workflows/check", params=version)
        assert (checked.status_code, checked.json()["code"]) == (422, "UNKNOWN_VERSION")
        checked = await http.get("/v1/workflows/check", params={"workflow_id": "workflow_invocies"})
        assert (checked.status_code, checked.json()["code"]) == (422, "UNKNOWN_WORKFLOW")
        checked = await http.get("/v1/workflows/check", params={**version, "workflow_version": "2"})
        assert checked.json() == {"workflow_id": "workflow_invoices", "workflow_version": "2"}
        # If Extend cannot be asked, the submission is accepted, and the answer says why.
        extend.away = True
        now[0] += 1000
        unsure = await upload("workflow_other", **{"idempotency-key": "k"})
        assert (unsure.status_code, "503" in unsure.json()["workflow_unchecked"]) == (202, True)
        extend.away = False
        now[0] += 1000
        again = await upload("workflow_other", **{"idempotency-key": "k"})
        assert (again.status_code, again.json()["submission_id"]) == (202, unsure.json()["submission_id"])
        assert (await upload("workflow_other")).status_code == 422


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd"])
@pytest.mark.parametrize("path", ["/v1/submissions", "/v1/batches"])
async def test_other_content_encodings_are_refused(http: httpx.AsyncClient, path: str, coding: str) -> None:
    query = {"workflow_id": "w"} | ({"batch_id": "batch_1"} if path == "/v1/batches" else {})
    answer = await http.post(path, content=line("a"), headers={"content-encoding": coding}, params=query)
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_ENCODING")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"not gzip", 422, "not valid gzip"),
        (gzip.compress(line("a"))[:-6], 422, "ends too early"),
        (gzip.compress(line("a")) + b"rest", 422, "not valid gzip"),
        (gzip.compress(b" " * (64 << 20)), 413, "larger than 1048576 bytes"),
        (gzip.compress(gzip.compress(line("a"))), 422, "not UTF-8"),
        (b"", 422, "no rows"),
    ],
    ids=["not gzip", "cut off", "something after it", "a bomb", "twice", "empty"],
)
async def test_a_gzip_body_that_cannot_be_unpacked_is_refused(
    http: httpx.AsyncClient, settings: Settings, body: bytes, status: int, said: str
) -> None:
    settings.upload_max_bytes = 1 << 20
    answer = await http.post("/v1/submissions", content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == status
    assert said in answer.json()["message"]


async def test_the_charset_is_used_and_a_missing_one_is_suggested(http: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    body = "id;url\nM\u00fcller;https://e.com/a.pdf\n".encode("cp1252")
    answer = await http.post("/v1/submissions", content=body, headers={"content-type": "text/csv"})
    assert answer.status_code == 422
    assert "charset=windows-1252" in answer.json()["message"]
    kind = {"content-type": 'text/csv; charset="windows-1252"'}
    assert (await http.post("/v1/submissions", content=body, headers=kind)).status_code == 202
    assert await kept(pool) == ["M\u00fcller"]


async def test_a_repeated_submission_is_a_conflict_that_names_the_first(http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/submissions", content=line("a"))
    again = await http.post("/v1/submissions", content=line("a"), params={"workflow_id": "w", "once": "true"})
    assert (again.status_code, again.json()["code"]) == (409, "SUBMITTED_BEFORE")
    assert again.json()["submission_id"] == first.json()["submission_id"]
    assert "created_at" in again.json()


async def test_no_transaction_is_open_while_a_body_arrives(http: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield line("a") * 1000
        begun.set()
        await go_on.wait()
        yield line("b")

    sending = asyncio.create_task(http.post("/v1/submissions", content=slow()))
    await begun.wait()
    open_ones = "select count(*) from pg_stat_activity where datname = current_database() and xact_start is not null"
    # No transaction and no snapshot, which would keep dead rows and block a swap.
    held = "select count(*) from pg_stat_activity where datname = current_database() and backend_xmin is not null"
    try:
        for holding in (open_ones, held):
            assert await pool.fetchval(f"{holding} and pid <> pg_backend_pid()") == 0
    finally:
        go_on.set()
        answer = await sending
    assert answer.status_code == 422
