"""Define the routes that read the quarantine: pages of messages, counts by reason, and one message."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import asyncpg
from fastapi import FastAPI, Query

from everyrun.errors import NotFound
from everyrun.http import scope
from everyrun.openapi import answers
from everyrun.query.answers import QuarantinedMessage, QuarantinePage, QuarantineReasons
from everyrun.query.paging import check_text, next_cursor, read_cursor, row_as_json
from everyrun.store.sql import beside

_sql = beside(__file__, "query.sql")
Text = Annotated[str | None, Query(min_length=1, max_length=600)]
State = Literal["OPEN", "RETRIED", "DISCARDED"]


def quarantine_routes(app: FastAPI, pool: asyncpg.Pool) -> None:
    """Add ``/v1/quarantine``, ``/v1/quarantine/reasons`` and ``/v1/quarantine/{source}``."""

    @app.get("/v1/quarantine", dependencies=[scope("read")])
    @answers(QuarantinePage)
    async def messages(
        state: State | None = None,
        reason: Annotated[Text, Query(description="Part of the reason's text.")] = None,
        topic: Annotated[Text, Query(description="`webhook`, or the topic of the message.")] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """List quarantined messages in pages, without their bytes. Filters can be combined."""
        filters = {"state": state, "reason": reason, "topic": topic}
        check_text(**filters)
        rows = await pool.fetch(_sql["quarantine"], *filters.values(), read_cursor(filters, cursor), limit + 1)
        more = next_cursor(filters, rows, limit, lambda row: str(row["source"]))
        return {"messages": [row_as_json(row) for row in rows[:limit]], "next_cursor": more}

    @app.get("/v1/quarantine/reasons", dependencies=[scope("read")])
    @answers(QuarantineReasons)
    async def reasons(state: State | None = None) -> dict[str, Any]:
        """Count quarantined messages by topic, reason and state. Return the hundred most frequent combinations."""
        return {"reasons": [row_as_json(row) for row in await pool.fetch(_sql["quarantine_reasons"], state)]}

    @app.get("/v1/quarantine/{source:path}", dependencies=[scope("read")])
    @answers(QuarantinedMessage, {404: "NOT_FOUND: there is no such message."})
    async def message(source: str) -> dict[str, Any]:
        """Return one message: its headers, its bytes (`raw`; also `text` if they are UTF-8), and decisions about it."""
        check_text(source=source)
        row = await pool.fetchrow(_sql["quarantined"], source)
        if row is None:
            raise NotFound(f"there is no message {source} in the quarantine")
        decided = [row_as_json(decision) for decision in await pool.fetch(_sql["decisions_of"], source)]
        shown = {**row_as_json(row), "raw": base64.b64encode(row["raw"]).decode(), "decisions": decided}
        try:
            return {**shown, "text": row["raw"].decode()}
        except UnicodeDecodeError:
            return {**shown, "text": None}
