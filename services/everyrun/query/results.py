"""Results: page by page with filters, and one by one."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query

from everyrun.http import ApiError, scope
from everyrun.openapi import answers
from everyrun.query import cursor as cursors
from everyrun.query.answers import OneResult, Result, ResultLine, Results, UnsentInput
from everyrun.query.gate import Gate
from everyrun.query.paging import Connection, after, clean, plain
from everyrun.store.sql import beside
from everyrun.waiting import waiting_of

_sql = beside(__file__, "query.sql")
_UNSENT = ("WAITING", "SENDING", "IN_DOUBT")
#: Ours, and Extend's (SDK 1.20.0, types/workflow_run_status.py). Extend may invent more: one that is in a row counts.
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
        include: Annotated[str | None, Query(description="`run` for the whole WorkflowRun of each.")] = None,
    ) -> dict[str, Any]:
        """Results page by page, each filter alone or with others.

        Without a status: every input that was sent or refused. Inputs that are WAITING, SENDING or IN_DOUBT have no
        row yet; they are listed if that status is asked for, with their ids, and what they wait for until when.
        """
        filters = {"submission_id": submission_id, "batch_id": batch_id, "status": status, "external_id": external_id}
        clean(**filters)
        if include not in (None, "run"):
            raise ApiError(422, "INVALID_REQUEST", "include: only run can be included", field="include")
        last = after(filters, cursor)
        async with pages.turn(), pool.acquire() as c:
            if status in _UNSENT:
                rows = await _unsent(c, filters, last, limit + 1)
            else:
                if status is not None:
                    await _check_status(c, status)
                rows = await c.fetch(_sql["results"], *filters.values(), last, limit + 1, include == "run")
        shown = [_shown_unsent(row) if status in _UNSENT else _shown(row, include == "run") for row in rows[:limit]]
        if len(rows) <= limit:
            return {"results": shown, "next_cursor": None}
        final = rows[limit - 1]
        place = f"{final['chunk']}/{final['position']}" if status in _UNSENT else final["input_id"]
        return {"results": shown, "next_cursor": cursors.make(filters, place)}

    @app.get("/v1/results/{input_id:path}", dependencies=[scope("read")])
    @answers(OneResult, {404: "NOT_FOUND: there is no such input."}, also=(Result, UnsentInput))
    async def result(input_id: str) -> dict[str, Any]:
        """One input, with its whole run; also one that is still waiting or being sent."""
        clean(input_id=input_id)
        submission_id, _, external_id = input_id.partition(":")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            row = await c.fetchrow(_sql["result"], input_id)
            if row is not None:
                return plain(row)
            queued = await c.fetchrow(_sql["queued"], submission_id, external_id)
        if queued is None:
            raise ApiError(404, "NOT_FOUND", f"there is no input {input_id}")
        return {"input_id": input_id, **_shown_unsent(queued)}


async def _unsent(
    connection: Connection, filters: dict[str, str | None], last: str | None, limit: int
) -> list[asyncpg.Record]:
    if filters["batch_id"] is not None:
        return []
    chunk, _, position = (last or "/0").rpartition("/")
    if not (position.isdecimal() and len(position) < 10):
        raise ApiError(422, "INVALID_REQUEST", "cursor: not a cursor of ours", field="cursor")
    wanted = (filters["submission_id"], filters["external_id"], filters["status"])
    rows: list[asyncpg.Record] = await connection.fetch(_sql["unsent"], *wanted, chunk or None, int(position), limit)
    return rows


async def _check_status(connection: Connection, status: str) -> None:
    if status not in STATUSES and not await connection.fetchval(_sql["has_status"], status):
        message = f"status: no input has the status {status!r}; known are {', '.join(STATUSES)}"
        raise ApiError(422, "INVALID_REQUEST", message, field="status")


def _shown(row: asyncpg.Record, with_run: bool) -> dict[str, Any]:
    shown = plain(row)
    if not with_run:
        shown.pop("run", None)
    return shown


def _shown_unsent(row: asyncpg.Record) -> dict[str, Any]:
    waiting = waiting_of({**row, "inputs": 1})
    kept = {name: value for name, value in plain(row).items() if name not in ("detail", "workflow_id")}
    return {**kept, "reason": waiting.reason, "what_to_do": waiting.what_to_do}
