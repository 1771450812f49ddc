"""Define the routes that read results: pages of inputs with filters, and one input."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query

from everyrun.errors import NotFound
from everyrun.http import InvalidFieldError, scope
from everyrun.openapi import answers
from everyrun.query.answers import OneResult, Result, ResultLine, Results, UnsentInput
from everyrun.query.gate import Gate
from everyrun.query.paging import (
    Connection,
    check_text,
    next_cursor,
    read_cursor,
    read_numbered_cursor,
    row_as_json,
)
from everyrun.store.sql import beside
from everyrun.waiting import waiting_of

_sql = beside(__file__, "query.sql")
_UNSENT = ("WAITING", "SENDING", "IN_DOUBT")
#: The statuses that the filter accepts: Everyrun's, and Extend's (SDK 1.20.0, types/workflow_run_status.py). A status
#: that Extend adds later is accepted as soon as an input has it.
STATUSES = (
    *(*_UNSENT, "REFUSED", "SUBMITTED"),
    *("PENDING", "PROCESSING", "CANCELLING", "NEEDS_REVIEW", "PROCESSED", "FAILED", "CANCELLED", "REJECTED"),
)
Text = Annotated[str | None, Query(min_length=1, max_length=600)]


def result_routes(app: FastAPI, pool: asyncpg.Pool) -> None:
    """Add ``/v1/results`` and ``/v1/results/{input_id}``."""
    pages = Gate("pages of results")

    @app.get("/v1/results", dependencies=[scope("read")])
    @answers(Results, also=(ResultLine, UnsentInput))
    async def results(
        submission_id: Text = None,
        batch_id: Text = None,
        status: Text = None,
        external_id: Text = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        include: Annotated[str | None, Query(description="`run`: include the whole WorkflowRun of each input.")] = None,
    ) -> dict[str, Any]:
        """List results in pages. Filters can be combined.

        Without `status`, list every input that was submitted or refused. Inputs that are WAITING, SENDING or IN_DOUBT
        have no row in the table `results` yet. To list them, set `status` to one of these; the response then says what
        each input is waiting for, and until when.
        """
        filters = {"submission_id": submission_id, "batch_id": batch_id, "status": status, "external_id": external_id}
        check_text(**filters)
        if include not in (None, "run"):
            raise InvalidFieldError("include", "must be run, or absent")
        if status in _UNSENT:
            after = read_numbered_cursor(filters, cursor)
            async with pages.turn(), pool.acquire() as c:
                rows = await _unsent(c, filters, *after, limit + 1)
            more = next_cursor(filters, rows, limit, lambda row: f"{row['chunk']}/{row['position']}")
            return {"results": [_shown_unsent(row) for row in rows[:limit]], "next_cursor": more}
        last = read_cursor(filters, cursor)
        async with pages.turn(), pool.acquire() as c:
            if status is not None:
                await _check_status(c, status)
            rows = await c.fetch(_sql["results"], *filters.values(), last, limit + 1, include == "run")
        more = next_cursor(filters, rows, limit, lambda row: str(row["input_id"]))
        return {"results": [_shown(row, include == "run") for row in rows[:limit]], "next_cursor": more}

    @app.get("/v1/results/{input_id:path}", dependencies=[scope("read")])
    @answers(OneResult, {404: "NOT_FOUND: there is no such input."}, also=(Result, UnsentInput))
    async def result(input_id: str) -> dict[str, Any]:
        """Return one input with its whole run. If it is not in `results` yet, return what it is waiting for."""
        check_text(input_id=input_id)
        submission_id, _, external_id = input_id.partition(":")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            row = await c.fetchrow(_sql["result"], input_id)
            if row is not None:
                return row_as_json(row)
            queued = await c.fetchrow(_sql["queued"], submission_id, external_id)
        if queued is None:
            raise NotFound(f"there is no input {input_id}")
        return {"input_id": input_id, **_shown_unsent(queued)}


async def _unsent(
    connection: Connection, filters: dict[str, str | None], chunk: str, position: int, limit: int
) -> list[asyncpg.Record]:
    if filters["batch_id"] is not None:
        return []
    wanted = (filters["submission_id"], filters["external_id"], filters["status"])
    rows: list[asyncpg.Record] = await connection.fetch(_sql["unsent"], *wanted, chunk or None, position, limit)
    return rows


async def _check_status(connection: Connection, status: str) -> None:
    if status not in STATUSES and not await connection.fetchval(_sql["has_status"], status):
        raise InvalidFieldError("status", f"{status!r} is unknown; known statuses: {', '.join(STATUSES)}")


def _shown(row: asyncpg.Record, with_run: bool) -> dict[str, Any]:
    shown = row_as_json(row)
    if not with_run:
        shown.pop("run", None)
    return shown


def _shown_unsent(row: asyncpg.Record) -> dict[str, Any]:
    waiting = waiting_of({**row, "inputs": 1})
    kept = {name: value for name, value in row_as_json(row).items() if name not in ("detail", "workflow_id")}
    return {**kept, "reason": waiting.reason, "what_to_do": waiting.what_to_do}
