"""Define the route that lists decisions: what was decided, by whom, when and why."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query

from everyrun.http import InvalidFieldError, scope
from everyrun.openapi import answers
from everyrun.projection.rules.merge import instant
from everyrun.query.answers import Decisions
from everyrun.query.paging import check_text, next_cursor, read_cursor, row_as_json
from everyrun.store.sql import beside

_sql = beside(__file__, "decisions.sql")
Text = Annotated[str | None, Query(min_length=1, max_length=255)]


def decision_routes(app: FastAPI, pool: asyncpg.Pool) -> None:
    """Add the route ``/v1/decisions``."""

    @app.get("/v1/decisions", dependencies=[scope("read")])
    @answers(Decisions)
    async def decisions(
        submission_id: Text = None,
        kind: Annotated[Text, Query(description="Type of the event, for example inputs-retried.")] = None,
        by: Annotated[Text, Query(description="Part of the name of who decided. Everyrun: decided by a rule.")] = None,
        since: Annotated[Text, Query(description="Only decisions from this time on, RFC 3339 with an offset.")] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """List decisions of people and of rules, the newest first, each with its reason.

        These are retries, cancellations, pauses, decisions about calls in doubt and quarantined messages, and changes
        of tokens and receivers.
        """
        check_text(submission_id=submission_id, kind=kind, by=by, since=since)
        begin = instant(since)
        if since is not None and begin is None:
            raise InvalidFieldError("since", "must be a time such as 2026-03-03T12:00:00Z")
        filters = {"decisions": "", "submission_id": submission_id, "kind": kind, "by": by, "since": since}
        at, _, event_id = (read_cursor(filters, cursor) or "").partition(" ")
        rows = await pool.fetch(
            _sql["decisions"], submission_id, kind, by, begin, instant(at), event_id or None, limit + 1
        )
        more = next_cursor(filters, rows, limit, lambda row: f"{row['decided_at'].isoformat()} {row['event_id']}")
        return {"decisions": [row_as_json(row) for row in rows[:limit]], "next_cursor": more}
