"""Runs that no input is known for: by reason, and since when."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query

from everyrun.http import ApiError, scope
from everyrun.openapi import answers
from everyrun.projection.rules.match import REASONS
from everyrun.projection.rules.merge import instant
from everyrun.query import cursor as cursors
from everyrun.query.answers import Unmatched
from everyrun.query.paging import after, clean, plain
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")


def unmatched_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool) -> None:
    """Add ``/v1/unmatched``."""
    deadline = settings.unmatched_after

    @app.get("/v1/unmatched", dependencies=[scope("read")])
    @answers(Unmatched)
    async def unmatched(
        reason: Annotated[str | None, Query(description=f"One of {', '.join(REASONS)}.")] = None,
        batch_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
        alarming: Annotated[bool | None, Query(description="Only those that are alarming, or only the others.")] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Runs that no input is known for, longest known first, and how many there are of each reason.

        One is alarming when it has waited longer than EVERYRUN_UNMATCHED_AFTER: until then its batch may still come.
        """
        clean(reason=reason, batch_id=batch_id)
        if reason is not None and reason not in REASONS:
            message = f"reason: there is no reason {reason!r}; known are {', '.join(REASONS)}"
            raise ApiError(422, "INVALID_REQUEST", message, field="reason")
        filters = {"unmatched": "", "reason": reason, "batch_id": batch_id, "alarming": alarming}
        since, _, run_id = (after(filters, cursor) or "").partition("/")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            by_reason = await c.fetch(_sql["unmatched_by_reason"], deadline)
            place = (instant(since), run_id or None)
            rows = await c.fetch(_sql["unmatched_runs"], deadline, reason, batch_id, alarming, *place, limit + 1)
        shown = [plain(row) for row in rows[:limit]]
        last = f"{shown[-1]['first_seen']}/{shown[-1]['run_id']}" if len(rows) > limit else ""
        return {
            "unmatched": shown,
            "by_reason": {r["reason"]: {"runs": r["runs"], "alarming": r["alarming"]} for r in by_reason},
            "next_cursor": cursors.make(filters, last) if last else None,
        }
