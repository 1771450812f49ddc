"""``POST /v1/batches``: registering a batch that somebody else submitted."""

from __future__ import annotations

from typing import Annotated

import asyncpg
import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from everyrun.http import BODY_BYTES, ApiError, scope
from everyrun.openapi import answers
from everyrun.settings import Settings
from everyrun.submission.api.answers import BadUpload, RegisteredBatch
from everyrun.submission.api.request_body import BODY, UPLOAD_REFUSED, Uploads, check_workflow, no_nul, rows_of
from everyrun.submission.batch_registration import BatchKnownError, BatchTooLargeError, register
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.keeper import Announcer
from everyrun.submission.recovery.queue_recovery import Level, restored

Id = Annotated[str, Query(min_length=1, max_length=255)]


def batch_routes(
    app: FastAPI,
    settings: Settings,
    pool: asyncpg.Pool,
    announcer: Announcer,
    uploads: Uploads,
    level: Level,
    workflows: Workflows | None = None,
) -> None:
    """Add ``/v1/batches``."""

    @app.post("/v1/batches", status_code=202, dependencies=[scope("submit")], openapi_extra={"requestBody": BODY})
    @answers(
        RegisteredBatch,
        {
            409: "BATCH_KNOWN: Everyrun sent the batch itself, or it was registered with other inputs.",
            415: "UNSUPPORTED_MEDIA_TYPE: the body is neither JSON, NDJSON nor CSV.",
            422: (UPLOAD_REFUSED, BadUpload),
        },
    )
    async def register_batch(
        request: Request,
        batch_id: Annotated[Id, Query(description="The batch's id at Extend.")],
        workflow_id: Id,
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    ) -> JSONResponse:
        """Account for a batch that was sent to Extend by somebody else: with its inputs, all of them, as sent.

        Answers 202 with submission_id, batch_id, expected and ambiguous: how many inputs have metadata equal to
        another's, so that no run can be told to be theirs. The same again answers the same; other inputs, or a batch
        that Everyrun sent, 409. A workflow that Extend says it does not have, 422 UNKNOWN_WORKFLOW.
        """
        for name, value in (
            ("batch_id", batch_id),
            ("workflow_id", workflow_id),
            ("workflow_version", workflow_version),
        ):
            no_nul(name, value or "")
        try:
            async with rows_of(request, uploads, BODY_BYTES) as given:
                await restored(level)
                unchecked = await check_workflow(workflows, workflow_id, None)
                registered = await register(
                    pool,
                    settings,
                    given,
                    batch_id=batch_id,
                    workflow_id=workflow_id,
                    workflow_version=workflow_version,
                )
        except BatchTooLargeError as error:
            raise ApiError(413, "TOO_LARGE", str(error)) from None
        except BatchKnownError as error:
            raise ApiError(409, "BATCH_KNOWN", str(error)) from None
        announcer.poke.set()
        more = {} if unchecked is None else {"workflow_unchecked": unchecked}
        return JSONResponse({**msgspec.to_builtins(registered), **more}, 202)
