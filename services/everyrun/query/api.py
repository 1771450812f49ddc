"""Define the query API. Routes for reports, progress and batches are here; modules beside this one add the others."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from everyrun.errors import NotFound
from everyrun.http import api, scope
from everyrun.openapi import answers
from everyrun.query.answers import Batch, Batches, Report, Standing
from everyrun.query.counts import count_routes, counts_in, submission_of
from everyrun.query.decisions import decision_routes
from everyrun.query.etag import tagged
from everyrun.query.export import export_routes
from everyrun.query.gate import Gate
from everyrun.query.live import live_routes, progress_of
from everyrun.query.overdue import overdue_by_reason, overdue_routes
from everyrun.query.paging import check_text, next_cursor, read_numbered_cursor, row_as_json
from everyrun.query.quarantine import quarantine_routes
from everyrun.query.report import report
from everyrun.query.results import result_routes
from everyrun.query.tries import try_routes
from everyrun.query.unmatched import unmatched_routes
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")


def _line(row: asyncpg.Record) -> dict[str, Any]:
    """Return a row of the view ``report`` as JSON. Postgres returns sums as decimals, so make them integers."""
    line = row_as_json(row)
    for name in ("inputs", "settled", "runs_in_results", "runs_in_duplicates", "runs_in_superseded", "unmatched"):
        line[name] = int(line[name])
    line["counted_rows"] = {status: int(number) for status, number in line["counted_rows"].items()}
    return line


def query_api(settings: Settings, pool: asyncpg.Pool, stopping: asyncio.Event | None = None) -> FastAPI:
    """Return the query service's API. The body of an error is ``{"code", "message"}``; see the OpenAPI document.

    Gates limit how many slow reads run at the same time. Reports, lists of batches and lists of overdue inputs share
    one gate; pages of results have another. If too many such reads are in progress, the response is 503 BUSY. If
    Postgres needs longer than the pool's ``command_timeout``, the response is 504 TOO_SLOW. Streams of events end when
    ``stopping`` is set.
    """
    app = api(
        "Everyrun query",
        "Read reports, results and problems. This service never writes.",
        settings,
        pool,
    )

    reports = Gate("reports")

    async def too_slow(_request: Request, _error: Exception) -> JSONResponse:
        message = "the database took too long; ask for less: one submission, or a smaller limit"
        return JSONResponse({"code": "TOO_SLOW", "message": message}, 504)

    # api() has added handlers for the classes in POSTGRES_AWAY, which are base classes of these two. FastAPI calls the
    # handler of the nearest base class, so these two get the answer above.
    for kind in (TimeoutError, asyncpg.QueryCanceledError):
        app.add_exception_handler(kind, too_slow)

    @app.get("/v1/submissions/{submission_id}/report", dependencies=[scope("read")])
    @answers(Report, {404: "NOT_FOUND: there is no such submission."}, tagged=True)
    async def submission_report(submission_id: str, request: Request) -> Response:
        """Return a submission's progress and problems, and a check that independently counted numbers agree.

        All numbers are read in one transaction, so that they are from the same moment.
        """
        check_text(submission_id=submission_id)
        async with reports.turn(), pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            submission = await submission_of(c, submission_id)
            counts = await counts_in(c, settings, submission)
            counted = {row["status"]: row["inputs"] for row in await c.fetch(_sql["counted_rows"], submission_id)}
            lines = [_line(row) for row in await c.fetch(_sql["batch_lines"], submission_id)]
            states = {row["state"]: row["batches"] for row in await c.fetch(_sql["states"], submission_id)}
            unmatched = {row["reason"]: row["runs"] for row in await c.fetch(_sql["unmatched_of"], submission_id)}
            pending = await c.fetchval(_sql["pending_deliveries"], submission_id)
            overdue = await overdue_by_reason(c, settings, submission_id, counts.late)
        found = report(dict(submission), counts, counted, lines, states, unmatched, pending, overdue)
        return tagged(request, found)

    @app.get("/v1/submissions/{submission_id}/progress", dependencies=[scope("read")])
    @answers(Standing, {404: "NOT_FOUND: there is no such submission."})
    async def submission_progress(submission_id: str) -> dict[str, Any]:
        """Return a submission's progress from stored counters.

        This request counts no rows, so it is cheap and can be repeated often.

        For the inputs without a row in `results`, `waiting` explains what they are waiting for, until when, and what a
        person can do. `polling` contains the number of sent inputs whose result is missing, and the time of the next
        poll that looks for results. `needs_person` counts the inputs and runs that only a person can move forward.
        """
        check_text(submission_id=submission_id)
        return await progress_of(pool, settings, submission_id)

    @app.get("/v1/submissions/{submission_id}/batches", dependencies=[scope("read")])
    @answers(Batches, {404: "NOT_FOUND: there is no such submission."})
    async def batches(
        submission_id: str, cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """List the attempts to send a submission's chunks.

        Each attempt comes with its stored counters, and with the same numbers counted from its rows.
        """
        check_text(submission_id=submission_id)
        filters = {"batches": submission_id}
        chunk, attempt = read_numbered_cursor(filters, cursor)
        async with reports.turn(), pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            await submission_of(c, submission_id)
            rows = await c.fetch(_sql["batch_lines_after"], submission_id, chunk, attempt, limit + 1)
        more = next_cursor(filters, rows, limit, lambda row: f"{row['chunk']}/{row['attempt']}")
        return {"batches": [_line(row) for row in rows[:limit]], "next_cursor": more}

    @app.get("/v1/batches/{batch_id}", dependencies=[scope("read")])
    @answers(Batch, {404: "NOT_FOUND: there is no such batch."})
    async def batch(batch_id: str) -> dict[str, Any]:
        """Return one batch by its batchId.

        The response contains its times, its stored counters, and the same numbers counted from its rows.
        """
        check_text(batch_id=batch_id)
        row = await pool.fetchrow(_sql["batch"], batch_id)
        if row is None:
            raise NotFound(f"there is no batch {batch_id}")
        return _line(row)

    count_routes(app, settings, pool, reports)
    result_routes(app, pool)
    export_routes(app, settings, pool)
    live_routes(app, settings, pool, stopping or asyncio.Event())
    overdue_routes(app, settings, pool, reports)
    unmatched_routes(app, settings, pool)
    quarantine_routes(app, pool)
    try_routes(app, pool)
    decision_routes(app, pool)
    return app
