"""The HTTP API that takes inputs in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse

from everyrun.http import ApiError, api, scope
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission import parse
from everyrun.submission.intake import BadRowsError, IdempotencyConflictError, take_in
from everyrun.submission.keeper import Announcer

_sql = beside(__file__, "queue.sql")

_ROW = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 255, "description": "Unique in the submission."},
        "file": {
            "type": "object",
            "description": "Exactly one of url (with name and settings.password), id, and text (with name).",
            "properties": {
                "url": {"type": "string"},
                "id": {"type": "string"},
                "text": {"type": "string"},
                "name": {"type": "string"},
                "settings": {"type": "object", "properties": {"password": {"type": "string"}}},
            },
        },
        "metadata": {"type": "object", "description": "At most 10 KB; no key begins everyrun:."},
    },
}
_BODY = {
    "required": True,
    "content": {
        parse.JSON: {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"type": "array", "minItems": 1, "items": _ROW}},
            }
        },
        parse.NDJSON: {"schema": {"type": "string", "description": "A row, as in inputs above, a line."}},
        parse.CSV: {"schema": {"type": "string", "description": (parse.csv_row.__doc__ or "").strip()}},
    },
}


async def _limited(request: Request, most: int) -> AsyncIterator[bytes]:
    taken = 0
    async for part in request.stream():
        taken += len(part)
        if taken > most:
            raise ApiError(413, "TOO_LARGE", f"the upload is larger than {most} bytes; split it")
        yield part


def submission_api(settings: Settings, pool: asyncpg.Pool, announcer: Announcer) -> FastAPI:
    """The submission service's API. Errors are ``{"code", "message"}``; see the OpenAPI document."""
    app = api(
        "Everyrun submission",
        "Takes inputs in, in bulk. What is answered with 202 is sent to Extend and accounted for.",
        settings,
        pool,
    )

    @app.post("/v1/submissions", status_code=202, dependencies=[scope("submit")], openapi_extra={"requestBody": _BODY})
    async def submit(
        request: Request,
        workflow_id: Annotated[str, Query(min_length=1, max_length=255)],
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
        priority: Annotated[int, Query(ge=1, le=100)] = 90,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> JSONResponse:
        """Take inputs in: all of them, or none. Answers 202 with submission_id, expected and batches (a count)."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in (parse.JSON, parse.NDJSON, parse.CSV):
            kinds = f"{parse.JSON}, {parse.NDJSON} or {parse.CSV}"
            raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", f"content-type must be {kinds}, not {content_type!r}")
        _no_nul("workflow_id", workflow_id)
        _no_nul("workflow_version", workflow_version or "")
        try:
            accepted = await take_in(
                pool,
                settings,
                parse.rows(content_type, _limited(request, settings.upload_max_bytes)),
                workflow_id=workflow_id,
                workflow_version=workflow_version,
                priority=priority,
                idempotency_key=idempotency_key,
            )
        except parse.UploadError as error:
            raise ApiError(422, "UNREADABLE", str(error)) from None
        except BadRowsError as error:
            raise _bad_rows(error) from None
        except IdempotencyConflictError:
            message = "this Idempotency-Key was used for other content; use a new key, or send the same content again"
            raise ApiError(409, "IDEMPOTENCY_CONFLICT", message) from None
        announcer.poke.set()
        return JSONResponse(msgspec.to_builtins(accepted), 202)

    @app.get("/v1/submissions", dependencies=[scope("read")])
    async def submissions(
        cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """The submissions, newest first, with what became of their chunks; next_cursor where there are more."""
        _no_nul("cursor", cursor or "")
        rows = await pool.fetch(_sql["submissions"], None, cursor, limit + 1)
        more = len(rows) > limit
        shown = [_shown(row) for row in rows[:limit]]
        return {"submissions": shown, "next_cursor": shown[-1]["submission_id"] if more else None}

    @app.get("/v1/submissions/{submission_id}", dependencies=[scope("read")])
    async def submission(submission_id: str) -> dict[str, Any]:
        """One submission: its chunks by state, and what holds them up."""
        _no_nul("submission_id", submission_id)
        row = await pool.fetchrow(_sql["submissions"], submission_id, None, 1)
        if row is None:
            raise ApiError(404, "NOT_FOUND", f"there is no submission {submission_id}")
        return _shown(row)

    return app


def _bad_rows(error: BadRowsError) -> ApiError:
    if not error.count:
        return ApiError(422, "NO_ROWS", "the upload has no rows; nothing was taken in", bad_rows=0, rows=[])
    message = f"{error.count} bad rows, so nothing was taken in; the first {len(error.rows)} are listed"
    rows = [msgspec.to_builtins(row) for row in error.rows]
    return ApiError(422, "BAD_ROWS", message, bad_rows=error.count, rows=rows)


def _no_nul(field: str, value: str) -> None:
    if "\x00" in value:
        raise ApiError(422, "INVALID_REQUEST", f"{field}: has a NUL character", field=field)


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    names = ("submission_id", "workflow_id", "workflow_version", "priority", "expected", "batches")
    held_up = [reason for reason in (row["reasons"] or ()) if reason]
    return {
        **{name: row[name] for name in names},
        "created_at": row["created_at"].isoformat(),
        "chunks": row["chunks"],
        "paused": row["paused"],
        "retry_at": row["retry_at"].isoformat() if row["retry_at"] else None,
        "held_up_by": held_up,
    }
