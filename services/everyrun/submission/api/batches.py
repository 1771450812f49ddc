"""Serve ``POST /v1/batches``: register a batch that another caller sent to Extend."""

from __future__ import annotations

import asyncio
from typing import Annotated

import asyncpg
import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from everyrun.http import BODY_BYTES, ApiError, scope
from everyrun.openapi import answers
from everyrun.settings import Settings
from everyrun.submission.api.answers import BadUpload, RegisteredBatch
from everyrun.submission.api.request_body import (
    BODY,
    UPLOAD_REFUSED,
    Uploads,
    check_workflow,
    refuse_nul,
    uploaded_rows,
)
from everyrun.submission.intake.batch_registration import (
    BatchKnownError,
    BatchTooLargeError,
    RunSource,
    UnknownBatchError,
    check_batch,
    register,
)
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.recovery.queue_recovery import QueueRecovery, require_restored

Id = Annotated[str, Query(min_length=1, max_length=255)]


def batch_routes(
    app: FastAPI,
    settings: Settings,
    pool: asyncpg.Pool,
    wake_announcer: asyncio.Event,
    uploads: Uploads,
    recovery: QueueRecovery,
    workflows: Workflows | None = None,
    runs: RunSource | None = None,
) -> None:
    """Add ``/v1/batches``. Without ``runs``, the route does not check that Extend lists a run of the batch."""

    @app.post("/v1/batches", status_code=202, dependencies=[scope("submit")], openapi_extra={"requestBody": BODY})
    @answers(
        RegisteredBatch,
        {
            409: "BATCH_KNOWN: Everyrun sent the batch itself, or it was registered with other inputs.",
            415: (
                "UNSUPPORTED_MEDIA_TYPE: the body is neither JSON, NDJSON nor CSV. UNSUPPORTED_ENCODING: its "
                "Content-Encoding is not gzip."
            ),
            422: (f"{UPLOAD_REFUSED} UNKNOWN_BATCH: Extend lists no run of the batch.", BadUpload),
        },
    )
    async def register_batch(
        request: Request,
        batch_id: Annotated[Id, Query(description="The id of the batch at Extend.")],
        workflow_id: Id,
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    ) -> JSONResponse:
        """Register a batch that another caller sent to Extend.

        The body contains all inputs of the batch, as they were sent.

        Answers 202 with submission_id, batch_id, expected (the number of inputs) and ambiguous (the number of inputs to
        which no run can be matched, because another input has the same metadata). A repeated request gets the same
        answer. Answers 409 if the batch was registered with other inputs, or if Everyrun sent the batch. Answers 422 if
        Extend does not have the workflow (UNKNOWN_WORKFLOW) or lists no run of the batch (UNKNOWN_BATCH).
        """
        for name, value in (
            ("batch_id", batch_id),
            ("workflow_id", workflow_id),
            ("workflow_version", workflow_version),
        ):
            refuse_nul(name, value or "")
        try:
            async with uploaded_rows(request, uploads, BODY_BYTES) as rows:
                await require_restored(recovery)
                unchecked = await check_workflow(workflows, workflow_id, None)
                batch_unchecked = None if runs is None else await check_batch(pool, runs, batch_id)
                registered = await register(
                    pool,
                    settings,
                    rows,
                    batch_id=batch_id,
                    workflow_id=workflow_id,
                    workflow_version=workflow_version,
                )
        except BatchTooLargeError as error:
            raise ApiError(413, "TOO_LARGE", str(error)) from None
        except BatchKnownError as error:
            raise ApiError(409, "BATCH_KNOWN", str(error)) from None
        except UnknownBatchError as error:
            raise ApiError(422, "UNKNOWN_BATCH", str(error), field="batch_id") from None
        wake_announcer.set()
        more = {"workflow_unchecked": unchecked, "batch_unchecked": batch_unchecked}
        more = {name: why for name, why in more.items() if why is not None}
        return JSONResponse({**msgspec.to_builtins(registered), **more}, 202)
