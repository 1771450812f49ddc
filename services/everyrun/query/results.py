"""Define the routes that read results: pages of inputs with filters, and one input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from msgspec.structs import replace

from everyrun.errors import NotFound
from everyrun.http import InvalidFieldError, scope
from everyrun.openapi import answers
from everyrun.query.answers import OneResult, Result, ResultLine, Results, UnsentInput
from everyrun.query.etag import tagged
from everyrun.query.filter_parameters import Wanted, statement
from everyrun.query.filters import SORTS, STATUSES, UNSENT, Filter, Order, conditions_of, read_sort
from everyrun.query.gate import Gate
from everyrun.query.paging import (
    Connection,
    check_text,
    make_cursor,
    malformed_cursor,
    next_cursor,
    read_cursor,
    row_as_json,
)
from everyrun.store.sql import beside
from everyrun.waiting import waiting_of

_sql = beside(__file__, "query.sql")


def result_routes(app: FastAPI, pool: asyncpg.Pool) -> None:
    """Add ``/v1/results`` and ``/v1/results/{input_id}``."""
    pages = Gate("pages of results")

    @app.get("/v1/results", dependencies=[scope("read")])
    @answers(Results, also=(ResultLine, UnsentInput))
    async def results(
        wanted: Wanted,
        submission_id: Annotated[str | None, Query(max_length=600)] = None,
        sort: Annotated[
            str | None, Query(description=f"One of {', '.join(SORTS)}; with a minus for the reverse order.")
        ] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        include: Annotated[str | None, Query(description="`run`: include the whole WorkflowRun of each input.")] = None,
    ) -> dict[str, Any]:
        """List results in pages. An input is listed if it fits all filters.

        Without `status`, list every input that was submitted or refused. Inputs that are WAITING, SENDING or IN_DOUBT
        have no row in the table `results` yet. To list them, name one of these in `status`. They come after the other
        inputs, in the order in which they are sent; the response says what each waits for, and until when.

        The default order is that of `input_id`, which never changes: each input that fits during the whole walk
        through the pages is listed exactly once. With `sort=observed_at`, an input whose state changes during the walk
        is listed again. With `sort=-observed_at`, it may be left out. `sort=settled_at` lists only settled inputs.
        """
        if include not in (None, "run"):
            raise InvalidFieldError("include", "must be run, or absent")
        order = read_sort(sort)
        bound = {**wanted.named(), "sort": order.text}
        phases = _phases(wanted)
        phase, after = _place(read_cursor(bound, cursor), len(phases))
        async with pages.turn(), pool.acquire() as c:
            await check_statuses(c, wanted.status)
            while True:
                unsent = phases[phase]
                if unsent is None:
                    rows = await _page(c, wanted, order, after, limit + 1, include == "run")
                else:
                    rows = await _unsent(c, wanted, unsent, after, limit + 1)
                if rows or phase + 1 == len(phases):
                    break
                phase, after = phase + 1, None
        key = _unsent_key if unsent is not None else order.key
        more = next_cursor(bound, rows, limit, lambda row: f"{phase}/{key(row)}")
        if more is None and phase + 1 < len(phases):
            more = make_cursor(bound, f"{phase + 1}/")
        shown = [_shown_unsent(row) if unsent is not None else _shown(row, include == "run") for row in rows[:limit]]
        return {"results": shown, "next_cursor": more}

    @app.get("/v1/results/{input_id:path}", dependencies=[scope("read")])
    @answers(OneResult, {404: "NOT_FOUND: there is no such input."}, also=(Result, UnsentInput), tagged=True)
    async def result(input_id: str, request: Request) -> Response:
        """Return one input with its whole run. If it is not in `results` yet, return what it is waiting for."""
        check_text(input_id=input_id)
        submission_id, _, external_id = input_id.partition(":")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            row = await c.fetchrow(_sql["result"], input_id)
            if row is not None and row["status"] not in UNSENT:
                return tagged(request, row_as_json(row))
            # The queue knows what an input waits for, whether it has a row or not.
            queued = await c.fetchrow(_sql["queued"], submission_id, external_id)
        if queued is None:
            if row is not None:
                return tagged(request, row_as_json(row))
            raise NotFound(f"there is no input {input_id}")
        return tagged(request, {"input_id": input_id, **_shown_unsent(queued)})


def _phases(wanted: Filter) -> list[str | None]:
    """Return what the pages go through: None for the rows of ``results``, then each status of inputs without a row.

    Raises InvalidFieldError if a filter cannot be applied to inputs without a row.
    """
    unsent = [status for status in wanted.status if status in UNSENT]
    for name in ("metadata", "text"):
        if unsent and name in wanted.named():
            problem = f"cannot be combined with status={unsent[0]}: only inputs that were sent can be searched"
            raise InvalidFieldError(name, problem)
    return [*([None] if not wanted.status or len(unsent) < len(wanted.status) else []), *unsent]


def _place(cursor: str | None, phases: int) -> tuple[int, str | None]:
    """Return the phase in which a page begins, and the key after which it begins in it."""
    phase, slash, key = (cursor or "0/").partition("/")
    if not (slash and phase.isdecimal() and len(phase) < 3 and int(phase) < phases):
        raise malformed_cursor()
    return int(phase), key or None


async def _page(
    connection: Connection, wanted: Filter, order: Order, after: str | None, limit: int, with_run: bool
) -> list[asyncpg.Record]:
    # Inputs with a row that is WAITING are listed as the queue knows them, with those that have no row.
    sent = tuple(status for status in wanted.status if status not in UNSENT)
    conditions = conditions_of(replace(wanted, status=sent))
    order.add_to(conditions, after)
    parts = {
        "with_run": f"{conditions.parameter(with_run)}::boolean",
        "limit": f"{conditions.parameter(limit)}::bigint",
        "conditions": conditions.text,
        "order": order.text,
    }
    rows: list[asyncpg.Record] = await connection.fetch(statement(_sql["results"], **parts), *conditions.values)
    return rows


def _unsent_key(row: asyncpg.Record) -> str:
    return f"{row['chunk']}/{row['queue_position']}"


async def _unsent(
    connection: Connection, wanted: Filter, status: str, after: str | None, limit: int
) -> list[asyncpg.Record]:
    if wanted.named().keys() - {"submission_id", "external_id", "status"}:
        # An input that was not sent has no batch, no failure and no time.
        return []
    chunk, _, number = (after or "/0").rpartition("/")
    if not (number.isdecimal() and len(number) < 10):
        raise malformed_cursor()
    given = (wanted.submission_id, wanted.external_id, status, chunk or None, int(number), limit)
    rows: list[asyncpg.Record] = await connection.fetch(_sql["unsent"], *given)
    return rows


async def check_statuses(connection: Connection, statuses: Iterable[str]) -> None:
    """Raise InvalidFieldError if one of the statuses is none that is known, and none that an input has."""
    for status in statuses:
        if status not in STATUSES and not await connection.fetchval(_sql["has_status"], status):
            raise InvalidFieldError("status", f"{status!r} is unknown; known statuses: {', '.join(STATUSES)}")


def _shown(row: asyncpg.Record, with_run: bool) -> dict[str, Any]:
    shown = row_as_json(row)
    if not with_run:
        shown.pop("run", None)
    return shown


def _shown_unsent(row: asyncpg.Record) -> dict[str, Any]:
    waiting = waiting_of({**row, "inputs": 1})
    kept = {
        name: value
        for name, value in row_as_json(row).items()
        if name not in ("detail", "workflow_id", "queue_position")
    }
    return {**kept, "reason": waiting.reason, "what_to_do": waiting.what_to_do}
