"""Handing in, on a real Postgres: all rows as they were given, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission.intake import Accepted, BadRowsError, IdempotencyConflictError, take_in
from everyrun.submission.parse import NDJSON, UploadError, rows

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
