"""The read API. It only reads: reports, batches, results."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, Query

from everyrun.http import BEARER, ApiError, api
from everyrun.query import cursor as cursors
from everyrun.query.report import report
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")
_UNSENT = ("SENDING", "IN_DOUBT")
Text = Annotated[str | None, Query(min_length=1, max_length=600)]


def _clean(**given: str | None) -> None:
    for field, value in given.items():
        if value is not None and "\x00" in value:
            raise ApiError(422, "INVALID_REQUEST", f"{field}: has a NUL character", field=field)
        if value is not None and not value.isprintable():
            raise ApiError(422, "INVALID_REQUEST", f"{field}: has a character that cannot be printed", field=field)


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}


def _line(row: asyncpg.Record) -> dict[str, Any]:
    """A line of the view ``report``, numbers as numbers."""
    line = _plain(row)
    for name in ("inputs", "settled", "runs_in_results", "runs_in_duplicates", "unmatched"):
        line[name] = int(line[name])
    line["counted_rows"] = {status: int(number) for status, number in line["counted_rows"].items()}
    return line


def query_api(settings: Settings, pool: asyncpg.Pool) -> FastAPI:
    """The query service's API. Errors are ``{"code", "message"}``; see the OpenAPI document."""
    app = api(
        "Everyrun query",
        "What became of every input. Reads the projection, never writes.",
        settings,
        (asyncpg.PostgresError, asyncpg.InterfaceError, OSError),
    )

    @app.get("/v1/submissions/{submission_id}/report", dependencies=[Depends(BEARER)])
    async def submission_report(submission_id: str) -> dict[str, Any]:
        """Where a submission stands, and whether every number adds up; one moment's view of all of it."""
        _clean(submission_id=submission_id)
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            submission = await c.fetchrow(_sql["submission"], submission_id)
            if submission is None:
                raise ApiError(404, "NOT_FOUND", f"there is no submission {submission_id}")
            kept = {row["status"]: row["inputs"] for row in await c.fetch(_sql["counts"], submission_id)}
            counted = {row["status"]: row["inputs"] for row in await c.fetch(_sql["counted_rows"], submission_id)}
            lines = [_line(row) for row in await c.fetch(_sql["batch_lines"], submission_id)]
            states = {row["state"]: row["batches"] for row in await c.fetch(_sql["states"], submission_id)}
            unmatched = await c.fetchval(_sql["unmatched"], submission_id)
            pending = await c.fetchval(_sql["pending_deliveries"], submission_id)
        if not kept:
            kept = {"WAITING": submission["expected"]}
        return report(dict(submission), kept, counted, list(lines), states, unmatched, pending)

    @app.get("/v1/submissions/{submission_id}/batches", dependencies=[Depends(BEARER)])
    async def batches(
        submission_id: str, cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """The attempts at a submission's batches, each with its counters beside a count of the rows."""
        _clean(submission_id=submission_id)
        filters = {"batches": submission_id}
        chunk, _, attempt = (_after(filters, cursor) or "/0").rpartition("/")
        rows = await pool.fetch(_sql["batch_lines_after"], submission_id, chunk, int(attempt), limit + 1)
        shown = [_line(row) for row in rows[:limit]]
        more = len(rows) > limit
        last = f"{shown[-1]['chunk']}/{shown[-1]['attempt']}" if more else ""
        return {"batches": shown, "next_cursor": cursors.make(filters, last) if more else None}

    @app.get("/v1/batches/{batch_id}", dependencies=[Depends(BEARER)])
    async def batch(batch_id: str) -> dict[str, Any]:
        """One batch by Extend's id: its counters beside a count of the rows, and its times."""
        _clean(batch_id=batch_id)
        row = await pool.fetchrow(_sql["batch"], batch_id)
        if row is None:
            raise ApiError(404, "NOT_FOUND", f"there is no batch {batch_id}")
        return _line(row)

    @app.get("/v1/results", dependencies=[Depends(BEARER)])
    async def results(
        submission_id: Text = None,
        batch_id: Text = None,
        status: Text = None,
        external_id: Text = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        include: Annotated[str | None, Query(description="`run` for the whole WorkflowRun of each.")] = None,
    ) -> dict[str, Any]:
        """Results by input id, page by page. SENDING and IN_DOUBT inputs have no run, WAITING ones no row either."""
        filters = {"submission_id": submission_id, "batch_id": batch_id, "status": status, "external_id": external_id}
        _clean(**filters)
        if include not in (None, "run"):
            raise ApiError(422, "INVALID_REQUEST", "include: only run can be included", field="include")
        after = _after(filters, cursor)
        if status in _UNSENT:
            rows = await pool.fetch(_sql["unsent"], submission_id, None, after, limit + 1)
            rows = [row for row in rows if row["status"] == status]
        elif status == "WAITING":
            if submission_id is None:
                raise ApiError(
                    422, "INVALID_REQUEST", "submission_id: is needed with status=WAITING", field="submission_id"
                )
            rows = await pool.fetch(_sql["waiting"], submission_id, after, limit + 1)
        else:
            ids = (submission_id, batch_id, status, external_id)
            rows = await pool.fetch(_sql["results"], *ids, after, limit + 1, include == "run")
        shown = [_shown(row, status, include == "run") for row in rows[:limit]]
        more = len(rows) > limit
        return {"results": shown, "next_cursor": cursors.make(filters, shown[-1]["input_id"]) if more else None}

    @app.get("/v1/results/{input_id:path}", dependencies=[Depends(BEARER)])
    async def result(input_id: str) -> dict[str, Any]:
        """One input, with its whole run; also one that is still waiting or being sent."""
        _clean(input_id=input_id)
        row = await pool.fetchrow(_sql["result"], input_id)
        if row is not None:
            return _plain(row)
        submission_id, _, external_id = input_id.partition(":")
        unsent = await pool.fetchrow(_sql["unsent"], submission_id, input_id, None, 1)
        if unsent is not None:
            return {**_plain(unsent), "external_id": external_id}
        queued = await pool.fetchrow(_sql["queued"], submission_id, external_id)
        if queued is None:
            raise ApiError(404, "NOT_FOUND", f"there is no input {input_id}")
        return {"input_id": input_id, **_plain(queued), "status": "WAITING"}

    return app


def _after(filters: dict[str, Any], cursor: str | None) -> str | None:
    try:
        return cursors.read(filters, cursor)
    except cursors.CursorError as error:
        raise ApiError(422, "INVALID_REQUEST", f"cursor: {error}", field="cursor") from None


def _shown(row: asyncpg.Record, status: str | None, with_run: bool) -> dict[str, Any]:
    shown = _plain(row)
    if "external_id" not in shown:
        shown["external_id"] = shown["input_id"].partition(":")[2]
    if status == "WAITING":
        shown["status"] = status
    if not with_run:
        shown.pop("run", None)
    return shown
