"""Serve syncs: what of a source was submitted before, and new submissions of what is new or changed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse

from everyrun.http import ApiError, scope
from everyrun.log.events import MAX_IDEMPOTENCY_KEY
from everyrun.openapi import answers
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.api.answers import BadUpload, Submitted, SyncedObjects
from everyrun.submission.api.request_body import (
    SYNC_BODY,
    UPLOAD_REFUSED,
    Uploads,
    check_workflow,
    refuse_nul,
    uploaded_rows,
)
from everyrun.submission.intake import synced
from everyrun.submission.intake.accept import (
    IdempotencyConflictError,
    QueueReplacedError,
    accept_submission,
)
from everyrun.submission.intake.idempotency import is_known
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.recovery.queue_recovery import NotCaughtUpError, QueueRecovery, require_restored

_sql = beside(__file__, "api.sql")

Source = Annotated[str, Query(min_length=1, max_length=2000, description="The bucket or folder, as a URL.")]
WorkflowId = Annotated[str, Query(min_length=1, max_length=255)]


def sync_routes(
    app: FastAPI,
    settings: Settings,
    pool: asyncpg.Pool,
    wake_announcer: asyncio.Event,
    uploads: Uploads,
    recovery: QueueRecovery,
    workflows: Workflows | None,
) -> None:
    """Add ``/v1/syncs``."""

    @app.get("/v1/syncs", dependencies=[scope("submit")])
    @answers(SyncedObjects)
    async def known(
        source: Source,
        workflow_id: WorkflowId,
        cursor: Annotated[str | None, Query(max_length=255)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> dict[str, Any]:
        """List the objects of a source that were submitted to a workflow by syncs, with the version of each."""
        for name, value in (("source", source), ("workflow_id", workflow_id), ("cursor", cursor or "")):
            refuse_nul(name, value)
        found = await pool.fetch(_sql["synced_objects"], source, workflow_id, cursor, limit + 1)
        shown = [dict(row) for row in found[:limit]]
        return {"objects": shown, "next_cursor": shown[-1]["object"] if len(found) > limit else None}

    @app.post("/v1/syncs", status_code=202, dependencies=[scope("submit")], openapi_extra={"requestBody": SYNC_BODY})
    @answers(
        Submitted,
        {
            409: (
                "SYNCED_MEANWHILE: another sync submitted an object of this source meanwhile: list the source again. "
                "IDEMPOTENCY_CONFLICT: the Idempotency-Key was used for other content."
            ),
            415: (
                "UNSUPPORTED_MEDIA_TYPE: the body is neither JSON nor NDJSON. UNSUPPORTED_ENCODING: its "
                "Content-Encoding is not gzip."
            ),
            422: (UPLOAD_REFUSED + " TOO_MANY_ROWS: a sync has at most 100,000 rows per submission.", BadUpload),
        },
    )
    async def sync(
        request: Request,
        source: Source,
        workflow_id: WorkflowId,
        idempotency_key: Annotated[str, Header(min_length=1, max_length=MAX_IDEMPOTENCY_KEY)],
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
        priority: Annotated[int, Query(ge=1, le=100)] = 90,
    ) -> JSONResponse:
        """Accept new and changed objects of a source as one submission, or none of them.

        In the same transaction, the versions of the objects are remembered for the source and the workflow. If what is
        remembered of an object is not `was`, nothing is accepted.
        """
        for name, value in (("source", source), ("workflow_id", workflow_id), ("version", workflow_version or "")):
            refuse_nul(name, value)
        taken = synced.SyncedRows(source, workflow_id)
        try:
            async with uploaded_rows(request, uploads, settings.upload_max_bytes) as rows:
                incarnation = await require_restored(recovery)
                repeated = await is_known(pool, idempotency_key)
                unchecked = None if repeated else await check_workflow(workflows, workflow_id, workflow_version)
                accepted = await accept_submission(
                    pool,
                    settings,
                    taken.take(rows),
                    workflow_id=workflow_id,
                    workflow_version=workflow_version,
                    priority=priority,
                    idempotency_key=idempotency_key,
                    incarnation=incarnation,
                    also=taken.store,
                )
        except QueueReplacedError:
            raise NotCaughtUpError("the database was replaced during the upload; send it again") from None
        except synced.TooManySyncedError:
            message = f"a sync has at most {synced.MAX_ROWS} rows per submission; send the others in another one"
            raise ApiError(422, "TOO_MANY_ROWS", message) from None
        except IdempotencyConflictError:
            message = "this Idempotency-Key was used for other content; use a new key, or send the first content again"
            raise ApiError(409, "IDEMPOTENCY_CONFLICT", message) from None
        wake_announcer.set()
        more = {} if unchecked is None else {"workflow_unchecked": unchecked}
        return JSONResponse({**msgspec.to_builtins(accepted), **more}, 202)
