"""Define the route that lists unmatched runs: runs without a known input."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query

from everyrun.http import InvalidFieldError, scope
from everyrun.openapi import answers
from everyrun.projection.rules.match import REASONS
from everyrun.projection.rules.merge import instant
from everyrun.query.answers import Unmatched
from everyrun.query.paging import check_text, next_cursor, read_cursor, row_as_json
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")


def unmatched_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool) -> None:
    """Add the route ``/v1/unmatched``."""
    deadline = settings.unmatched_after

    @app.get("/v1/unmatched", dependencies=[scope("read")])
    @answers(Unmatched)
    async def unmatched(
        reason: Annotated[str | None, Query(description=f"One of {', '.join(REASONS)}.")] = None,
        batch_id: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
        alarming: Annotated[
            bool | None, Query(description="true: only alarming runs. false: only runs that are not alarming.")
        ] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """List runs without a known input, oldest first, and count them by reason.

        A run is alarming if it was first seen longer than EVERYRUN_UNMATCHED_AFTER ago. Before that, the event of its
        batch may still arrive, and with it the input.
        """
        check_text(reason=reason, batch_id=batch_id)
        if reason is not None and reason not in REASONS:
            raise InvalidFieldError("reason", f"{reason!r} is unknown; known reasons: {', '.join(REASONS)}")
        filters = {"unmatched": "", "reason": reason, "batch_id": batch_id, "alarming": alarming}
        since, _, run_id = (read_cursor(filters, cursor) or "").partition("/")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            by_reason = await c.fetch(_sql["unmatched_by_reason"], deadline)
            last = (instant(since), run_id or None)
            rows = await c.fetch(_sql["unmatched_runs"], deadline, reason, batch_id, alarming, *last, limit + 1)
        return {
            "unmatched": [row_as_json(row) for row in rows[:limit]],
            "by_reason": {r["reason"]: {"runs": r["runs"], "alarming": r["alarming"]} for r in by_reason},
            "next_cursor": next_cursor(
                filters, rows, limit, lambda row: f"{row['first_seen'].isoformat()}/{row['run_id']}"
            ),
        }
