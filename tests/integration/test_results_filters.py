"""Filters, orders, pages and counts of results, over rows with every kind of value."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.query.api import query_api
from everyrun.query.filters import SORTS
from everyrun.settings import Settings
from everyrun.store.pool import connection_setup

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
HOSTILE = """O'Brien "x" <b>&amp;</b> %_\\ {1} $1 -- ünïcode 😀"""

#: Of each input: status, failure reason, metadata, minute of settling (None: open), batch, name of the file.
ROWS: dict[str, tuple[str, str | None, dict[str, Any], int | None, str, str]] = {
    "a": ("PROCESSED", None, {"invoice": "A-17", "year": 2026}, 1, "b1", "acme.pdf"),
    "b": ("FAILED", "TIMEOUT", {"invoice": "A-18", "year": "2026"}, 5, "b1", "b.pdf"),
    "c": ("FAILED", "PASSWORD", {"year": 2025, "paid": True}, 3, "b2", "c.pdf"),
    "d": ("PENDING", None, {"year": 2026}, None, "b2", "d.pdf"),
    "e": ("REFUSED", "DISCARDED", {"invoice": HOSTILE, "a.b": "x=y"}, 4, "b2", HOSTILE),
    "f": ("NEEDS_REVIEW", None, {"nested": {"x": 1}, "none": None}, None, "b2", "f.pdf"),
}


class Here:
    """A query service over two submissions: that of ROWS, and one with a processed input `a`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.app = query_api(Settings(api_token=TOKEN), pool)

    async def get(self, path: str, code: int = 200, /, **params: Any) -> Any:
        headers = {"authorization": f"Bearer {TOKEN}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://q", headers=headers) as http:
            answer = await http.get(path, params=params)
        assert answer.status_code == code, answer.text
        return answer.json()

    async def found(self, **params: Any) -> str:
        """Return the external ids on the only page of results of the submission s."""
        page = await self.get("/v1/results", submission_id="s", **params)
        assert page["next_cursor"] is None
        return "".join(row["external_id"] for row in page["results"])

    async def insert(self, external_id: str, row: tuple[Any, ...], submission: str = "s", position: int = 1) -> None:
        status, reason, metadata, minute, batch, name = row
        await self.pool.execute(
            "insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt,"
            " file, metadata, status, failure_reason, observed_at, settled_at, version)"
            " values ($1 || ':' || $2, $2, $1, $3, $4, $1 || '.' || $3, 1, $5, $6, $7, $8,"
            " '2026-03-03T11:00:00Z', '2026-03-03T12:00:00Z'::timestamptz + make_interval(mins => $9), '1')",
            *(submission, external_id, batch, position, {"name": name}, metadata, status, reason, minute),
        )


@pytest.fixture
async def here(database: str) -> AsyncIterator[Here]:
    async with asyncpg.create_pool(database, min_size=1, max_size=4, init=connection_setup) as pool:
        here = Here(pool)
        for submission, ids in (("s", ROWS), ("s2", {"a": ROWS["a"]})):
            await pool.execute(
                "insert into everyrun.submissions values ($1, 'w', null, 90, $2, now())", submission, len(ids) + 2
            )
            for batch in ("b1", "b2"):
                counts: dict[str, int] = {}
                inputs = [name for name, row in ids.items() if row[4] == batch]
                for name in inputs:
                    counts[ids[name][0]] = counts.get(ids[name][0], 0) + 1
                await pool.execute(
                    "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, expected, state, counts,"
                    " input_ids) values ($1 || '.' || $2::text, 1, case $1 when 's' then $2::text end, $1, $3,"
                    " 'SUBMITTED', $4, $5)",
                    *(submission, batch, len(inputs), counts, [f"{submission}:{name}" for name in inputs]),
                )
            for position, (name, row) in enumerate(reversed(ids.items()), 1):
                await here.insert(name, row, submission, position)
        yield here


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "abcdef"),
        ({"status": "FAILED"}, "bc"),
        ({"status": ["FAILED", "REFUSED"]}, "bce"),
        ({"failure_reason": ["TIMEOUT", "DISCARDED"]}, "be"),
        ({"batch_id": "b2"}, "cdef"),
        ({"batch_id": "b2", "status": "FAILED"}, "c"),
        ({"external_id": "a"}, "a"),
        ({"metadata.invoice": "A-17"}, "a"),
        ({"metadata.year": "2026"}, "abd"),
        ({"metadata.year": "2026", "metadata.invoice": "A-18"}, "b"),
        ({"metadata.paid": "true"}, "c"),
        ({"metadata.a.b": "x=y"}, "e"),
        ({"metadata.nested": '{"x": 1}'}, "f"),
        ({"metadata.none": "null"}, ""),
        ({"metadata.invoice": HOSTILE}, "e"),
        ({"settled_since": "2026-03-03T12:04:00Z"}, "be"),
        ({"settled_until": "2026-03-03T12:04:00Z"}, "ac"),
        ({"settled_since": "2026-03-03T14:03:00+02:00", "settled_until": "2026-03-03T12:05:00Z"}, "ce"),
        ({"observed_since": "2026-03-03"}, "abcdef"),
        ({"observed_until": "2026-03-03"}, ""),
        ({"text": "ACME"}, "a"),
        ({"text": "a-1"}, "ab"),
        ({"text": HOSTILE}, "e"),
        ({"text": "ünï"}, "e"),
        ({"text": "%"}, "e"),
        ({"text": "timeout"}, "b"),
        ({"sort": "position"}, "fedcba"),
        ({"sort": "-position"}, "abcdef"),
        ({"sort": "settled_at"}, "aceb"),
        ({"sort": "-settled_at", "status": "FAILED"}, "bc"),
        ({"sort": "-observed_at"}, "fedcba"),
        ({"status": "' or true --"}, None),
        ({"sort": "status"}, None),
        ({"metadata": "x"}, None),
        ({"status": "WAITING", "text": "x"}, None),
        ({"submission": "s"}, None),
    ],
)
async def test_every_filter_finds_what_fits(here: Here, filters: dict[str, Any], found: str | None) -> None:
    if found is None:
        assert (await here.get("/v1/results", 422, **filters))["code"] == "INVALID_REQUEST"
        return
    assert await here.found(**filters) == found
    if "sort" not in filters:
        counts = await here.get("/v1/submissions/s/counts", **filters)
        rows = [ROWS[name] for name in found]
        # Without filters, the two inputs that were not sent are counted too.
        waiting = 0 if filters else 2
        assert counts["total"] == len(rows) + waiting
        wanted = {status: sum(row[0] == status for row in rows) for status in {row[0] for row in rows}}
        assert counts["by_status"] == wanted | ({"WAITING": 2} if waiting else {})
        reasons = {row[1] for row in rows if row[1]}
        assert counts["by_failure_reason"] == {reason: sum(row[1] == reason for row in rows) for reason in reasons}
        assert counts["not_searched"] == (2 if filters.keys() - {"status"} else 0)


@pytest.mark.parametrize(
    "hostile",
    [
        "'",
        "''; delete from everyrun.results; --",
        '"',
        "\\",
        "$1",
        "/*conditions*/",
        "%s",
        "{0}",
        "a' or '1'='1",
        "\u202e",
    ],
)
async def test_no_value_changes_the_statement(here: Here, hostile: str) -> None:
    for name in ("text", "metadata.invoice", f"metadata.{hostile}"):
        for row in (await here.get("/v1/results", submission_id="s", **{name: hostile}))["results"]:
            assert hostile in json.dumps(row["metadata"], ensure_ascii=False).replace("\\\\", "\\")
        await here.get("/v1/submissions/s/counts", **{name: hostile})
    for name in ("external_id", "batch_id", "failure_reason"):
        if hostile.isprintable():
            assert await here.found(**{name: hostile}) == ""
    for name in ("sort", "cursor", "settled_since", "status"):
        await here.get("/v1/results", 422, submission_id="s", **{name: hostile})
    assert await here.found() == "abcdef"


@pytest.mark.parametrize("sort", [f"{minus}{name}" for name in SORTS for minus in ("", "-")])
async def test_pages_list_each_input_once(here: Here, sort: str) -> None:
    whole = await here.found(sort=sort)
    listed, cursor = "", {}
    while True:
        page = await here.get("/v1/results", submission_id="s", sort=sort, limit=1, **cursor)
        listed += "".join(row["external_id"] for row in page["results"])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert listed == whole


async def test_a_walk_through_pages_stays_right_while_rows_change(here: Here) -> None:
    """By id, an input that fits all the time is listed once. By time, a changed input comes again at the end."""
    listed: dict[str, list[str]] = {"input_id": [], "observed_at": []}
    cursors: dict[str, dict[str, str]] = {"input_id": {}, "observed_at": {}}
    for step in range(20):
        for sort, seen in listed.items():
            if cursors[sort] or not seen:
                page = await here.get("/v1/results", submission_id="s", sort=sort, limit=1, **cursors[sort])
                seen += [row["external_id"] for row in page["results"]]
                cursors[sort] = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
        if step == 1:
            await here.insert("0", ROWS["a"])
            await here.insert("bb", ROWS["a"])
            await here.pool.execute("delete from everyrun.results where input_id = 's:b'")
            await here.pool.execute(
                "update everyrun.results set status = 'FAILED', observed_at = now() where input_id in ('s:a', 's:d')"
            )
    assert listed["input_id"] == ["a", "b", "bb", "c", "d", "e", "f"]
    assert sorted(set(listed["observed_at"])) == ["a", "b", "bb", "c", "d", "e", "f"]
    assert listed["observed_at"].count("a") == 2
    assert listed["observed_at"].count("d") == 1


async def test_a_cursor_belongs_to_its_filters_and_order(here: Here) -> None:
    page = await here.get("/v1/results", submission_id="s", limit=1, status="FAILED")
    for other in ({"status": "REFUSED"}, {"status": "FAILED", "sort": "position"}, {}):
        answer = await here.get("/v1/results", 422, submission_id="s", cursor=page["next_cursor"], **other)
        assert answer["field"] == "cursor"


async def test_inputs_that_were_not_sent_come_after_the_others(here: Here) -> None:
    await here.pool.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, expected, batches, content_hash,"
        " created_at, announced_at) values ('s', 'w', 90, 8, 3, '', now(), now())"
    )
    await here.pool.execute(
        "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, attempt)"
        " values ('s.c9', 's', 7, 8, 'waiting', 1)"
    )
    await here.pool.execute(
        "insert into everyrun_queue.inputs (submission_id, position, external_id, file, metadata)"
        " values ('s', 7, 'y', '{}', '{}'), ('s', 8, 'z', '{}', '{}')"
    )
    listed, cursor = "", {}
    statuses = ["FAILED", "SENDING", "WAITING"]
    while True:
        page = await here.get("/v1/results", submission_id="s", status=statuses, limit=1, **cursor)
        listed += "".join(row["external_id"] for row in page["results"])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert listed == "bcyz"
    assert await here.found(status="WAITING") == "yz"
    assert await here.found(status="WAITING", batch_id="b1") == ""
    counts = await here.get("/v1/submissions/s/counts", status=["WAITING", "FAILED"])
    assert counts["by_status"] == {"FAILED": 2, "WAITING": 2}


async def test_counts_of_a_whole_submission_read_no_row_without_a_failure(here: Here) -> None:
    from everyrun.query.counts import _sql
    from tests.integration.test_query_load import plan

    async with here.pool.acquire() as connection:
        await connection.execute("set enable_seqscan = off")
        nodes = await plan(connection._con, _sql["failure_counts"], "s")
    scans = [node for node in nodes if node.get("Relation Name") == "results"]
    assert {node.get("Index Name") for node in nodes if "Index Name" in node} == {"results_not_processed"}, nodes
    assert scans


async def test_counts_of_an_unknown_submission_are_not_found(here: Here) -> None:
    assert (await here.get("/v1/submissions/nix/counts", 404))["code"] == "NOT_FOUND"
