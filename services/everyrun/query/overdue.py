"""Find inputs that have been open for too long, each with a reason.

That is computed at each request and not stored, because it depends on the present time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Query

from everyrun.http import scope
from everyrun.openapi import answers
from everyrun.query.answers import Overdue
from everyrun.query.gate import Gate
from everyrun.query.paging import Connection, check_text, next_cursor, read_cursor, row_as_json
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.waiting import WAITS_FOR, waiting_of

_sql = beside(__file__, "overdue.sql")
#: Counts overdue inputs by reason in Postgres, because a submission may have a million of them.
_BY_REASON = "with overdue as (" + _sql["overdue"] + ")\n" + _sql["by_reason"]

#: Each reason why an input can be overdue, and what it means.
REASONS = {
    "needs_review": "its run waits for a person in Extend",
    "still_running": "its run is listed and has not ended",
    "deleted_upstream": "its run was deleted at Extend",
    "not_listed": "the complete list of its batch has no run that could belong to it",
    "not_polled": "its batch has not been polled completely yet",
    **WAITS_FOR,
}


async def overdue_by_reason(
    connection: Connection, settings: Settings, submission_id: str, late: Mapping[str, int]
) -> dict[str, int]:
    """Return how many inputs of a submission are overdue, by reason.

    ``late`` contains the overdue inputs without a row in results, counted by reason. The others are counted here.
    """
    rows = await connection.fetch(_BY_REASON, settings.overdue_after, submission_id, None, None, settings.file_rate())
    found = Counter({row["reason"]: row["inputs"] for row in rows})
    found.update(late)
    return {reason: number for reason, number in sorted(found.items()) if number}


def overdue_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool, gate: Gate) -> None:
    """Add the route ``/v1/overdue``. Its reads are as slow as reports, so it shares their ``gate``."""

    @app.get("/v1/overdue", dependencies=[scope("read")])
    @answers(Overdue)
    async def overdue(
        submission_id: Annotated[str | None, Query(min_length=1, max_length=600)] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """List open inputs that Extend should have finished EVERYRUN_OVERDUE_AFTER ago, each with its `reason`.

        Extend is expected to process the inputs of a workflow in the order in which they were sent, at the files per
        minute of the plan (EVERYRUN_FILES_PER_MINUTE).

        Reasons: `needs_review` (its run waits for a person in Extend), `still_running` (its run has not ended),
        `deleted_upstream` (its run was deleted at Extend), `not_listed` (Extend's complete list of its batch has no run
        that could belong to it), `not_polled` (its batch has not been polled completely yet).

        The first page also contains `unsent`: up to 1,000 chunks that were not sent and have waited too long. Each
        entry says what its chunk is waiting for, until when, and what a person can do.
        """
        check_text(submission_id=submission_id)
        filters = {"overdue": submission_id}
        last = read_cursor(filters, cursor)
        async with gate.turn():
            rows = await pool.fetch(
                _sql["overdue"], settings.overdue_after, submission_id, last, limit + 1, settings.file_rate()
            )
            unsent = []
            if last is None:
                unsent = await pool.fetch(_sql["unsent_overdue"], submission_id, settings.overdue_after)
        return {
            "inputs": [row_as_json(row) for row in rows[:limit]],
            "unsent": [_chunk(row) for row in unsent],
            "next_cursor": next_cursor(filters, rows, limit, lambda row: str(row["input_id"])),
        }


def _chunk(row: asyncpg.Record) -> dict[str, Any]:
    ids = {name: row[name] for name in ("chunk", "submission_id", "workflow_id")}
    return {**ids, **msgspec.to_builtins(waiting_of(dict(row)))}
