"""Inputs that are still open when they should not be, each with a reason; found on reading, since it depends on now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query

from everyrun.http import scope
from everyrun.query import cursor as cursors
from everyrun.query.gate import Gate
from everyrun.query.paging import Connection, after, clean, plain
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "overdue.sql")
#: Postgres counts: a submission may have a million of them.
_BY_REASON = "with overdue as (" + _sql["overdue"] + ")\n" + _sql["by_reason"]

#: Why an input is overdue, and what that means.
REASONS = {
    "needs_review": "its run waits for a person in Extend",
    "still_running": "its run is listed and has not ended",
    "deleted_upstream": "its run was known and is no more: somebody deleted it",
    "not_listed": "the whole list of its batch has no run that could be its own",
    "not_polled": "its batch has not been listed to the end yet",
    "in_doubt": "the outcome of its call is unknown",
    "sending": "its call is under way",
    "waiting": "it has not been sent",
    "queue_lost": "it was not sent, and the queue lost it to a restored backup: repeat its upload, with the same key",
}
_UNSENT = {"IN_DOUBT": "in_doubt", "SENDING": "sending", "WAITING": "waiting"}


def unsent_reasons(kept: Mapping[str, int], *, late: bool, lost: int | None) -> dict[str, int]:
    """How many inputs that have no row yet are overdue, by reason. What the queue has lost is so at once.

    ``lost`` is how many of the inputs that wait the queue does not have; None if it has none of them.
    """
    found = {reason: kept.get(status, 0) for status, reason in _UNSENT.items() if late}
    waiting = max(kept.get("WAITING", 0), 0)
    found["queue_lost"] = waiting if lost is None else min(lost, waiting)
    if late:
        found["waiting"] = waiting - found["queue_lost"]
    return {reason: number for reason, number in found.items() if number > 0}


async def overdue_by_reason(
    connection: Connection, settings: Settings, submission_id: str, kept: Mapping[str, int]
) -> dict[str, int]:
    """How many inputs of a submission are overdue, by reason."""
    rows = await connection.fetch(_BY_REASON, settings.overdue_after, submission_id, None, None)
    found = Counter({row["reason"]: row["inputs"] for row in rows})
    unsent = await connection.fetchrow(_sql["unsent_overdue"], submission_id, settings.overdue_after)
    if unsent is not None:
        found.update(unsent_reasons(kept, late=unsent["late"], lost=unsent["lost"]))
    return dict(sorted(found.items()))


def overdue_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool, gate: Gate) -> None:
    """Add ``/v1/overdue``, behind the gate of the reports."""

    @app.get("/v1/overdue", dependencies=[scope("read")])
    async def overdue(
        submission_id: Annotated[str | None, Query(min_length=1, max_length=600)] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Inputs that were sent longer than EVERYRUN_OVERDUE_AFTER ago and are still open, each with its `reason`.

        `needs_review`, `still_running`, `deleted_upstream` (its run was known, and is no more), `not_listed` (the
        whole list of its batch has no run that could be its own), `not_polled`. Inputs that were not sent yet are
        counted in the submission's report, with `in_doubt`, `sending`, `waiting` or `queue_lost`.
        """
        clean(submission_id=submission_id)
        filters = {"overdue": submission_id}
        last = after(filters, cursor)
        async with gate.turn():
            rows = await pool.fetch(_sql["overdue"], settings.overdue_after, submission_id, last, limit + 1)
        shown = [plain(row) for row in rows[:limit]]
        more = len(rows) > limit
        return {"inputs": shown, "next_cursor": cursors.make(filters, shown[-1]["input_id"]) if more else None}
