"""Exports contain exactly the rows that fit, with their values unchanged, and later exports what has changed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pyarrow.parquet as pq
import pytest

from everyrun.query import export_reader
from everyrun.query.api import query_api
from everyrun.query.export_formats import COLUMNS
from everyrun.settings import Settings
from everyrun.store.pool import connection_setup

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
PATH = "/v1/submissions/s/export"
START = datetime(2026, 3, 3, 12, 0, 0, 123456, UTC)
#: Values that a careless writer or reader changes.
TEXTS = [
    *("plain", 'a "quote"', "a,comma", "two\nlines", "two\r\nlines", "\\N", "\\.", "null", "=1+1", "'apostrophe"),
    *("tab\there", "<b>&amp;</b>", "üñî😀\u2028", " spaces ", "\\u0041\\", "$1 %s {0}", "\x01\x02\x7f"),
]
INPUTS = [f"i{number:03d}" for number in range(60)]


def row_of(number: int) -> dict[str, Any]:
    text = TEXTS[number % len(TEXTS)]
    settled = number % 3 != 0
    return {
        "file": {"name": text, "url": "https://e.com/a.pdf", "id": None}
        if number % 4
        else {"id": "file_1", "name": ""},
        "metadata": {"text": text, "n": number, "deep": {"x": [1, None, "ä"]}},
        "status": "FAILED" if number % 5 == 0 else "PROCESSED" if settled else "PENDING",
        "failure_reason": text if number % 5 == 0 else None,
        "credits": number / 3 if settled else None,
        "settled_at": START + timedelta(seconds=number) if settled else None,
        "run": {"stepRuns": [extracted("One", {"total": text}), {}, extracted("One", [1])]} if settled else None,
    }


def extracted(step: str, value: Any) -> dict[str, Any]:
    return {"step": {"name": step}, "result": {"extractRun": {"output": {"value": value}}}}


class Here:
    """A query service over a submission of INPUTS, and another whose id begins like the first one's."""

    def __init__(self, pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
        self.pool = pool
        self.app = query_api(Settings(api_token=TOKEN), pool)
        self.connection = connection

    async def export(self, code: int = 200, /, **params: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {TOKEN}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://q", headers=headers) as http:
            answer = await http.get(PATH, params=params)
        assert answer.status_code == code, answer.text
        return answer

    async def ids(self, **params: Any) -> list[str]:
        """Return the external ids of an export."""
        lines = (await self.export(format="ndjson", **params)).text.split("\n")
        return [json.loads(line)["external_id"] for line in lines if line]

    async def changed(self, cursor: str, **params: Any) -> tuple[str, list[str], str]:
        """Return the scope, the external ids and the cursor of an export since a cursor."""
        answer = await self.export(format="ndjson", since=cursor, **params)
        found = [json.loads(line)["external_id"] for line in answer.text.split("\n") if line]
        return answer.headers["everyrun-export"], found, answer.headers["everyrun-export-cursor"]

    async def insert(self, external_id: str, number: int, submission: str = "s") -> None:
        given = row_of(number)
        await self.connection.execute(
            "insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt,"
            " file, metadata, status, failure_reason, credits, source, run, observed_at, settled_at, version)"
            " values ($1 || ':' || $2, $2, $1, 'b1', $3, 's.c1', 1, $4, $5, $6, $7, $8, 'webhook', $9, $10, $11, 'v1')",
            *(submission, external_id, number + 1, given["file"], given["metadata"], given["status"]),
            *(given["failure_reason"], given["credits"], given["run"], START, given["settled_at"]),
        )


@pytest.fixture
async def here(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    # Small parts, so that every export has many of them.
    monkeypatch.setattr(export_reader, "_FIRST_ROWS", 7)
    monkeypatch.setattr(export_reader, "_MOST_ROWS", 11)
    connection = await asyncpg.connect(database)
    await connection_setup(connection)
    async with asyncpg.create_pool(database, min_size=1, max_size=4, init=connection_setup) as pool:
        here = Here(pool, connection)
        await connection.execute(
            "insert into everyrun.submissions values ('s', 'w', '3', 90, $1, $2), ('s:x', 'w', null, 90, 1, $2)",
            *(len(INPUTS), START),
        )
        await connection.execute(
            "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, expected, state, submitted_at,"
            " input_ids) values ('s.c1', 1, 'b1', 's', 1, 'SUBMITTED', $1, '{}')",
            START - timedelta(seconds=2),
        )
        for number, name in enumerate(INPUTS):
            await here.insert(name, number)
        await here.insert("other", 1, "s:x")
        yield here
    await connection.close()


def wanted(number: int) -> dict[str, Any]:
    """Return the row that an export must have for an input."""
    given = row_of(number)
    settled = given["settled_at"]
    return {
        "input_id": f"s:{INPUTS[number]}",
        "external_id": INPUTS[number],
        "submission_id": "s",
        "workflow_id": "w",
        "workflow_version": "3",
        "batch_id": "b1",
        "position": number + 1,
        "file_name": given["file"]["name"],
        "file_url": given["file"].get("url"),
        "file_id": given["file"]["id"],
        "metadata": given["metadata"],
        "status": given["status"],
        "settled": given["status"] != "PENDING",
        "failure_reason": given["failure_reason"],
        "failure_message": None,
        "run_id": None,
        "retry": 0,
        "credits": given["credits"],
        "source": "webhook",
        "accepted_at": START,
        "submitted_at": START - timedelta(seconds=2),
        "observed_at": START,
        "settled_at": settled,
        "latency_seconds": None if settled is None else number + 2.0,
        "version": "v1",
    }


async def test_parquet_is_typed_and_complete(here: Here) -> None:
    answer = await here.export(format="parquet")
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert answer.headers["content-disposition"] == 'attachment; filename="s.parquet"'
    table = pq.read_table(io.BytesIO(answer.content))
    types = {field.name: str(field.type) for field in table.schema}
    assert list(types) == list(COLUMNS)
    assert {types[name] for name in ("accepted_at", "submitted_at", "observed_at", "settled_at")} == {
        "timestamp[us, tz=UTC]"
    }
    assert [types[name] for name in ("position", "settled", "credits", "latency_seconds", "metadata")] == [
        *("int32", "bool", "double", "double", "string")
    ]
    rows = [{**row, "metadata": json.loads(row["metadata"])} for row in table.to_pylist()]
    assert rows == [wanted(number) for number in range(len(INPUTS))]


async def test_csv_is_read_back_unchanged(here: Here) -> None:
    text = (await here.export()).content.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(INPUTS)
    for number, row in enumerate(rows):
        for name, value in wanted(number).items():
            if isinstance(value, datetime):
                assert (row[name][-1], datetime.fromisoformat(row[name])) == ("Z", value)
            elif name == "metadata":
                assert json.loads(row[name]) == value
            elif isinstance(value, bool):
                assert row[name] == str(value).lower()
            elif isinstance(value, float):
                assert float(row[name]) == value
            else:
                assert row[name] == ("" if value is None else str(value))


async def test_ndjson_has_an_object_on_each_line(here: Here) -> None:
    lines = (await here.export(format="ndjson")).content.decode().split("\n")
    assert lines.pop() == ""
    for number, line in enumerate(lines):
        row = json.loads(line)
        times = ("accepted_at", "submitted_at", "observed_at", "settled_at")
        assert {**row, **{t: row[t] and datetime.fromisoformat(row[t]) for t in times}} == wanted(number)
    assert len(lines) == len(INPUTS)


async def test_extracted_values_come_with_their_steps(here: Here) -> None:
    for format_ in ("ndjson", "csv", "parquet"):
        answer = await here.export(format=format_, extracted=True, external_id="i001")
        found: Any
        if format_ == "csv":
            (row,) = csv.DictReader(io.StringIO(answer.content.decode(), newline=""))
            found = json.loads(row["extracted"])
        elif format_ == "parquet":
            found = json.loads(pq.read_table(io.BytesIO(answer.content)).to_pylist()[0]["extracted"])
        else:
            found = json.loads(answer.text)["extracted"]
        assert found == [{"step": "One", "value": {"total": TEXTS[1]}}, {"step": "One", "value": [1]}]
    none = json.loads((await here.export(format="ndjson", extracted=True, external_id="i000")).text)
    assert none["extracted"] is None


async def test_steps_that_are_no_list_do_not_end_an_export(here: Here) -> None:
    for odd in (None, {}, "x", 7):
        await here.connection.execute(
            "update everyrun.results set run = $1 where input_id = 's:i001'", {"stepRuns": odd}
        )
        assert "i001" in await here.ids(extracted=True)


async def test_filters_choose_rows(here: Here) -> None:
    failed = [name for number, name in enumerate(INPUTS) if number % 5 == 0]
    assert await here.ids(status="FAILED") == failed
    assert await here.ids(**{"metadata.n": "17"}) == ["i017"]
    assert await here.ids(text="two\r\nlines", settled_since="2026-03-03T12:00:20Z") == ["i038", "i055"]
    assert await here.ids(text="occurs nowhere") == []
    assert len(await here.ids(settled_until="2026-03-04", status="PROCESSED")) == 32


async def test_what_cannot_be_exported_is_refused(here: Here) -> None:
    assert (await here.export(422, format="xlsx")).json()["field"] == "format"
    assert (await here.export(422, status="WAITING")).json()["field"] == "status"
    assert (await here.export(422, since="x")).json()["field"] == "since"
    cursor = (await here.export()).headers["everyrun-export-cursor"]
    assert (await here.export(422, since=cursor, status="FAILED")).json()["field"] == "since"
    await here.connection.execute("delete from everyrun.submissions where submission_id = 's'")
    assert (await here.export(404)).json()["code"] == "NOT_FOUND"


async def test_the_next_export_has_the_rows_that_changed(here: Here) -> None:
    cursor = (await here.export()).headers["everyrun-export-cursor"]
    assert (await here.changed(cursor))[:2] == ("changes", [])
    await here.connection.execute("update everyrun.results set version = 'v2' where external_id in ('i003', 'i059')")
    await here.insert("new", 2)
    scope, found, cursor = await here.changed(cursor)
    assert (scope, found) == ("changes", ["i003", "i059", "new"])
    assert (await here.changed(cursor))[1] == []


async def test_rows_of_a_transaction_that_was_open_are_in_the_next_export(here: Here, database: str) -> None:
    """Neither when a row was written nor its version says when it became visible, but its transaction does."""
    writer = await asyncpg.connect(database)
    for nested in (False, True):
        outer = writer.transaction()
        await outer.start()
        await writer.execute("update everyrun.submissions set priority = 1")
        if nested:
            inner = writer.transaction()
            await inner.start()
        await writer.execute("update everyrun.results set version = version || '+' where external_id = 'i007'")
        # Others write and commit meanwhile, with greater numbers of transactions.
        await here.connection.execute("update everyrun.results set version = version || '+' where external_id = 'i008'")
        first = await here.export(format="ndjson")
        assert "v1+" in first.text
        if nested:
            await inner.commit()
        await outer.commit()
        _, found, cursor = await here.changed(first.headers["everyrun-export-cursor"])
        assert "i007" in found
        assert (await here.changed(cursor))[1] == []
    await writer.close()


async def test_a_table_that_was_replaced_is_exported_as_a_whole(here: Here) -> None:
    cursor = (await here.export()).headers["everyrun-export-cursor"]
    await here.connection.execute("create table everyrun.copied (like everyrun.results including all)")
    await here.connection.execute("insert into everyrun.copied select * from everyrun.results")
    for statement in (
        "drop view everyrun.flat_results, everyrun.extractions, everyrun.report",
        "drop table everyrun.results",
        "alter table everyrun.copied rename to results",
    ):
        definitions = statement.startswith("drop view") and [
            (name, await here.connection.fetchval("select pg_get_viewdef($1::text::regclass)", f"everyrun.{name}"))
            for name in ("flat_results", "extractions")
        ]
        if definitions:
            kept = definitions
        await here.connection.execute(statement)
    for name, definition in kept:
        await here.connection.execute(f"create view everyrun.{name} as {definition}")
    scope, found, _ = await here.changed(cursor)
    assert (scope, found) == ("all", INPUTS)


async def test_rows_may_come_and_change_while_an_export_runs(
    here: Here, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each input that is there all the time is exported once, and a change is in this export or in the next."""
    other = await asyncpg.connect(database)
    whole, reads = export_reader._part, 0

    async def part(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 3:
            await other.execute("update everyrun.results set version = 'v9' where external_id in ('i001', 'i050')")
            await other.execute("delete from everyrun.results where external_id = 'i002'")
        return await whole(*given)

    monkeypatch.setattr(export_reader, "_part", part)
    answer = await here.export(format="ndjson")
    first = {json.loads(line)["external_id"]: json.loads(line)["version"] for line in answer.text.split("\n") if line}
    assert list(first) == INPUTS
    assert (first["i001"], first["i050"]) == ("v1", "v9")
    assert set((await here.changed(answer.headers["everyrun-export-cursor"]))[1]) >= {"i001"}
    await other.close()


async def test_an_export_survives_a_database_that_stops_answering(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, reads = export_reader._part, 0

    async def part(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads in (3, 4):
            raise ConnectionRefusedError
        return await whole(*given)

    monkeypatch.setattr(export_reader, "_part", part)
    assert await here.ids() == INPUTS
    monkeypatch.setattr(export_reader, "PATIENCE", 0.0)
    reads = 0
    # The response has begun, so that it can only break off.
    with pytest.raises(RuntimeError, match="response already started"):
        await here.ids()
    # Before the first row, the error has an answer of its own.
    reads = 2
    assert (await here.export(503)).json()["code"] == "UNAVAILABLE"


async def test_exports_wait_for_their_turn(here: Here) -> None:
    answers = await asyncio.gather(*(here.ids() for _ in range(8)))
    assert answers == [INPUTS] * 8
