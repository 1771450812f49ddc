"""Handing in, on a real Postgres: all rows as they were given, or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from pydantic import SecretStr

from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission.api import submission_api
from everyrun.submission.catchup import Level
from everyrun.submission.intake import Accepted, BadRowsError, IdempotencyConflictError, take_in
from everyrun.submission.parse import NDJSON, UploadError, rows
from tests.conftest import eventually

pytestmark = pytest.mark.stack

AWKWARD = ["plain", "back\\slash", "\\N", "\\.", "tab\\t", "q'\"", "\u00e9\U0001f600", "%s {}"]


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    async with await open_pool(settings, name="test") as pool:
        yield pool


async def hand_in(pool: asyncpg.Pool, settings: Settings, lines: list[bytes], key: str | None = None) -> Accepted:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(lines), 3):
            yield b"".join(lines[start : start + 3])

    how: dict[str, Any] = {"workflow_id": "w", "workflow_version": None, "priority": 90, "idempotency_key": key}
    return await take_in(pool, settings, rows(NDJSON, body()), **how)


def line(id: str, **metadata: Any) -> bytes:
    return msgspec.json.encode({"id": id, "file": {"text": f"of\t{id}\n"}, "metadata": metadata}) + b"\n"


async def counts(pool: asyncpg.Pool) -> tuple[int, ...]:
    tables = ("submissions", "inputs", "chunks")
    return tuple([await pool.fetchval(f"select count(*) from everyrun_queue.{name}") for name in tables])


async def test_every_row_is_kept_as_it_was_given(pool: asyncpg.Pool, settings: Settings) -> None:
    settings.chunk_max_inputs = 3
    accepted = await hand_in(pool, settings, [line(id, **{id: id + "\n\t\\"}) for id in AWKWARD])
    assert (accepted.expected, accepted.batches) == (8, 3)
    kept = await pool.fetch("select * from everyrun_queue.inputs order by position")
    assert [row["external_id"] for row in kept] == AWKWARD
    assert [msgspec.json.decode(row["file"]) for row in kept] == [{"text": f"of\t{id}\n"} for id in AWKWARD]
    assert [msgspec.json.decode(row["metadata"]) for row in kept] == [{id: id + "\n\t\\"} for id in AWKWARD]
    assert [row["position"] for row in kept] == list(range(1, 9))


async def test_one_bad_row_and_nothing_is_taken_in(pool: asyncpg.Pool, settings: Settings) -> None:
    with pytest.raises(BadRowsError) as bad:
        await hand_in(pool, settings, [line("a"), b'{"id": "b"}\n', line("c"), b"not json\n", line("a")])
    assert [(row.row, row.id, row.field) for row in bad.value.rows] == [(2, "b", "file"), (4, None, "")]
    assert await counts(pool) == (0, 0, 0)


async def test_an_id_that_comes_twice_is_named_with_both_rows(pool: asyncpg.Pool, settings: Settings) -> None:
    with pytest.raises(BadRowsError) as bad:
        await hand_in(pool, settings, [line("a"), line("b"), line("a"), line("a")])
    (row,) = bad.value.rows
    assert (bad.value.count, row.row, row.id, row.field) == (2, 3, "a", "id")
    assert "row 1" in row.reason
    assert await counts(pool) == (0, 0, 0)


async def test_an_upload_that_breaks_off_leaves_nothing_and_the_connection_is_good(
    pool: asyncpg.Pool, settings: Settings
) -> None:
    async def broken() -> AsyncIterator[Any]:
        yield [{"file": {"text": "x"}}]
        raise UploadError("the caller went away")

    how: dict[str, Any] = {"workflow_id": "w", "workflow_version": None, "priority": 90, "idempotency_key": None}
    for _ in range(15):
        with pytest.raises(UploadError, match="went away"):
            await take_in(pool, settings, broken(), **how)
    assert await counts(pool) == (0, 0, 0)
    assert (await hand_in(pool, settings, [line("a")])).expected == 1


async def test_the_same_upload_under_the_same_key_is_the_same_submission(
    pool: asyncpg.Pool, settings: Settings
) -> None:
    first = await hand_in(pool, settings, [line("a"), line("b")], key="k")
    assert await hand_in(pool, settings, [line("a"), line("b")], key="k") == first
    assert await counts(pool) == (1, 2, 1)
    with pytest.raises(IdempotencyConflictError):
        await hand_in(pool, settings, [line("a"), line("c")], key="k")
    assert await counts(pool) == (1, 2, 1)
    assert (await hand_in(pool, settings, [line("a"), line("b")])).submission_id != first.submission_id


async def test_no_rows_are_refused(pool: asyncpg.Pool, settings: Settings) -> None:
    with pytest.raises(BadRowsError) as bad:
        await hand_in(pool, settings, [])
    assert bad.value.count == 0


@pytest.mark.parametrize("path", ["/v1/submissions", "/v1/batches"])
async def test_slow_uploads_leave_connections_to_everyone_else(
    pool: asyncpg.Pool, settings: Settings, path: str
) -> None:
    settings.api_token = SecretStr("token")
    told: Any = SimpleNamespace(poke=asyncio.Event())
    unused: Any = None
    app = submission_api(settings, pool, told, unused, unused, Level(settings, pool))
    go_on = asyncio.Event()

    async def slow(number: int) -> AsyncIterator[bytes]:
        yield line(f"first{number}")
        await go_on.wait()
        yield line(f"second{number}")

    headers = {"authorization": "Bearer token", "content-type": NDJSON}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://submission", headers=headers) as http:

        async def upload(number: int) -> httpx.Response:
            query = {"workflow_id": "w", "batch_id": f"batch_{number}"}
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
