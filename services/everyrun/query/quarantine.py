"""The quarantine: messages that could not be understood, by reason, and one by one with their bytes."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import asyncpg
from fastapi import FastAPI, Query

from everyrun.http import ApiError, scope
from everyrun.openapi import answers
from everyrun.query import cursor as cursors
from everyrun.query.answers import QuarantinedMessage, QuarantinePage, QuarantineReasons
from everyrun.query.paging import after, clean, plain
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
        reason: Annotated[str | None, Query(min_length=1, max_length=600, description="A part of the reason.")] = None,
        topic: Annotated[Text, Query(description="webhook, or the topic it was read from.")] = None,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Messages page by page, without their bytes, each filter alone or with others."""
        filters = {"state": state, "reason": reason, "topic": topic}
        clean(**filters)
        rows = await pool.fetch(_sql["quarantine"], *filters.values(), after(filters, cursor), limit + 1)
        shown = [plain(row) for row in rows[:limit]]
        more = cursors.make(filters, shown[-1]["source"]) if len(rows) > limit else None
        return {"messages": shown, "next_cursor": more}

    @app.get("/v1/quarantine/reasons", dependencies=[scope("read")])
    @answers(QuarantineReasons)
    async def reasons(state: State | None = None) -> dict[str, Any]:
        """How many messages there are by topic, reason and state; the hundred greatest."""
        return {"reasons": [plain(row) for row in await pool.fetch(_sql["quarantine_reasons"], state)]}

    @app.get("/v1/quarantine/{source:path}", dependencies=[scope("read")])
    @answers(QuarantinedMessage, {404: "NOT_FOUND: there is no such message."})
    async def message(source: str) -> dict[str, Any]:
        """One message: its bytes (``raw``, base64; ``text`` where they are UTF-8), headers, and what was decided."""
        clean(source=source)
        row = await pool.fetchrow(_sql["quarantined"], source)
        if row is None:
            raise ApiError(404, "NOT_FOUND", f"there is no message {source} in the quarantine")
        decided = [plain(decision) for decision in await pool.fetch(_sql["decisions_of"], source)]
        shown = {**plain(row), "raw": base64.b64encode(row["raw"]).decode(), "decisions": decided}
        try:
            return {**shown, "text": row["raw"].decode()}
        except UnicodeDecodeError:
            return {**shown, "text": None}
