"""Define the route that shows the tries of an input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg
from fastapi import FastAPI

from everyrun.errors import NotFound
from everyrun.http import scope
from everyrun.log.keys import retry_of
from everyrun.openapi import answers
from everyrun.query.answers import Tries
from everyrun.query.paging import check_text, row_as_json
from everyrun.store.sql import beside

_sql = beside(__file__, "tries.sql")


def try_routes(app: FastAPI, pool: asyncpg.Pool) -> None:
    """Add ``/v1/tries/{input_id}``."""

    @app.get("/v1/tries/{input_id:path}", dependencies=[scope("read")])
    @answers(Tries, {404: "NOT_FOUND: there is no such input, or it was never sent."})
    async def tries(input_id: str) -> dict[str, Any]:
        """Show every try of an input, the oldest first: the first one, and those that retries made.

        A try has the attempts that sent the input, each with its run. A try without attempts waits to be sent.
        """
        check_text(input_id=input_id)
        submission_id, _, external_id = input_id.partition(":")
        async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
            attempts = await c.fetch(_sql["tries"], input_id)
            requests = await c.fetch(_sql["requests"], submission_id, external_id)
            created_at = await c.fetchval(_sql["submission"], submission_id)
        if not attempts and not requests:
            raise NotFound(f"there is no input {input_id} that was sent")
        first = {"retry": 0, "requested_by": None, "reason": None, "created_at": created_at}
        return {"input_id": input_id, "tries": tries_of([first, *map(dict, requests)], map(row_as_json, attempts))}


def tries_of(requests: Iterable[Mapping[str, Any]], attempts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tries in order, each with its request and its attempts. Pure.

    A try whose request the queue has lost is shown without who requested it.
    """
    found: dict[int, dict[str, Any]] = {}
    for request in requests:
        at = request["created_at"]
        found[request["retry"]] = _try(at.isoformat() if at else None, request["requested_by"], request["reason"])
    for attempt in attempts:
        found.setdefault(retry_of(attempt["chunk"]), _try(None, None, None))["attempts"].append(dict(attempt))
    ordered = sorted(found.items())
    return [{"try": number, "retry": retry, **one} for number, (retry, one) in enumerate(ordered, 1)]


def _try(requested_at: str | None, by: str | None, reason: str | None) -> dict[str, Any]:
    return {"requested_at": requested_at, "by": by, "reason": reason, "attempts": []}
