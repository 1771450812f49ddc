"""Serve the submission API: accept submissions, and show them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse

from everyrun.http import ApiError, api, scope
from everyrun.log.events import MAX_IDEMPOTENCY_KEY, SubmissionRules
from everyrun.log.producer import Log
from everyrun.openapi import answers
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.api.answers import (
    BadUpload,
    CheckedWorkflow,
    Submission,
    Submissions,
    Submitted,
    SubmittedBefore,
)
from everyrun.submission.api.batches import batch_routes
from everyrun.submission.api.cancellations import cancellation_routes
from everyrun.submission.api.doubts import doubt_routes, pause_routes
from everyrun.submission.api.objects import object_routes
from everyrun.submission.api.quarantine import quarantine_routes
from everyrun.submission.api.request_body import (
    BODY,
    UPLOAD_REFUSED,
    Uploads,
    check_workflow,
    refuse_nul,
    uploaded_rows,
)
from everyrun.submission.api.retries import retry_routes
from everyrun.submission.api.syncs import sync_routes
from everyrun.submission.cancellations.requests import Cancellations
from everyrun.submission.decisions.doubts import Doubts
from everyrun.submission.decisions.quarantine import Quarantine
from everyrun.submission.dispatch.object_links import ObjectLinks
from everyrun.submission.intake.accept import (
    IdempotencyConflictError,
    QueueReplacedError,
    SubmittedBeforeError,
    accept_submission,
)
from everyrun.submission.intake.batch_registration import RunSource
from everyrun.submission.intake.idempotency import is_known
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.recovery.queue_recovery import NotCaughtUpError, QueueRecovery, require_restored

_sql = beside(__file__, "api.sql")


def submission_api(
    settings: Settings,
    pool: asyncpg.Pool,
    wake_announcer: asyncio.Event,
    log: Log,
    doubts: Doubts,
    recovery: QueueRecovery,
    uploads: Uploads | None = None,
    workflows: Workflows | None = None,
    runs: RunSource | None = None,
    links: ObjectLinks | None = None,
    wake_canceller: asyncio.Event | None = None,
) -> FastAPI:
    """Return the submission service's API. Errors are ``{"code", "message"}``; see the OpenAPI document.

    ``wake_announcer`` is set after each accepted submission, and ``wake_canceller`` after each cancellation. Without
    ``workflows``, the ids of workflows are not checked. Without ``runs``, the ids of registered batches are not
    checked. Without ``links``, objects in buckets cannot be checked.
    """
    app = api(
        "Everyrun submission",
        "Accepts inputs in bulk. After a 202, Everyrun sends every input to Extend, and accounts for it.",
        settings,
        pool,
        frozenset({"/v1/submissions", "/v1/syncs"}),
    )
    uploads = Uploads() if uploads is None else uploads

    @app.post("/v1/submissions", status_code=202, dependencies=[scope("submit")], openapi_extra={"requestBody": BODY})
    @answers(
        Submitted,
        {
            409: (
                "IDEMPOTENCY_CONFLICT: the Idempotency-Key was used for other content. SUBMITTED_BEFORE: the same rows "
                "were submitted before, and `once` was set.",
                SubmittedBefore,
            ),
            415: (
                "UNSUPPORTED_MEDIA_TYPE: the body is neither JSON, NDJSON nor CSV. UNSUPPORTED_ENCODING: its "
                "Content-Encoding is not gzip."
            ),
            422: (UPLOAD_REFUSED, BadUpload),
        },
    )
    async def submit(
        request: Request,
        workflow_id: Annotated[str, Query(min_length=1, max_length=255)],
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
        priority: Annotated[int, Query(ge=1, le=100)] = 90,
        max_open_inputs: Annotated[
            int | None,
            Query(
                ge=1,
                le=2**31 - 1,
                description="Maximum number of inputs of this submission that are open at Extend at the same time.",
            ),
        ] = None,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=MAX_IDEMPOTENCY_KEY)] = None,
        once: Annotated[
            bool, Query(description="Refuse with 409 (SUBMITTED_BEFORE) if the same rows were submitted before.")
        ] = False,
        retries: Annotated[
            int, Query(ge=0, le=20, description="Maximum number of automatic new tries of an input that fails.")
        ] = 0,
        retry_reason: Annotated[
            list[str] | None,
            Query(description="Retry automatically only for this failure reason. Can be repeated; absent for all."),
        ] = None,
        stop_after_failures: Annotated[
            int | None,
            Query(ge=0, le=2_000_000_000, description="Pause the submission if more inputs are FAILED or REFUSED."),
        ] = None,
    ) -> JSONResponse:
        """Accept all inputs, or none.

        Answers 202 with submission_id, and the numbers of inputs (expected) and chunks (batches).

        A repeated upload, with the same content and the same Idempotency-Key, makes no new submission and gets the
        answer of the first upload. If the submission lost inputs because the queue was restored from a backup, the
        repeated upload restores them, and they are sent. An upload without a key gets the id of its submission as its
        key.

        Everyrun asks Extend if it has the workflow and its version. If not, Everyrun answers 422 UNKNOWN_WORKFLOW or
        UNKNOWN_VERSION, with `did_you_mean`. If Extend cannot be asked, the inputs are accepted, and
        `workflow_unchecked` says why.
        """
        refuse_nul("workflow_id", workflow_id)
        refuse_nul("workflow_version", workflow_version or "")
        for reason in retry_reason or ():
            refuse_nul("retry_reason", reason)
        rules = None
        if retries or stop_after_failures is not None:
            rules = SubmissionRules(retries, retry_reason or [], stop_after_failures)
        try:
            async with uploaded_rows(request, uploads, settings.upload_max_bytes) as rows:
                # A restored queue may not know the key of an earlier upload, so first recover the queue from the log.
                incarnation = None if idempotency_key is None else await require_restored(recovery)
                # A repeated upload gets the answer of the first upload, even if the workflow no longer exists.
                repeated = idempotency_key is not None and await is_known(pool, idempotency_key)
                unchecked = None if repeated else await check_workflow(workflows, workflow_id, workflow_version)
                accepted = await accept_submission(
                    pool,
                    settings,
                    rows,
                    workflow_id=workflow_id,
                    workflow_version=workflow_version,
                    priority=priority,
                    idempotency_key=idempotency_key,
                    incarnation=incarnation,
                    once=once,
                    rules=rules,
                    max_open_inputs=max_open_inputs,
                )
        except QueueReplacedError:
            raise NotCaughtUpError("the database was replaced during the upload; send it again") from None
        except SubmittedBeforeError as error:
            before = {"submission_id": error.submission_id, "created_at": error.created_at.isoformat()}
            raise ApiError(409, "SUBMITTED_BEFORE", str(error), **before) from None
        except IdempotencyConflictError:
            message = "this Idempotency-Key was used for other content; use a new key, or send the first content again"
            raise ApiError(409, "IDEMPOTENCY_CONFLICT", message) from None
        wake_announcer.set()
        more = {} if unchecked is None else {"workflow_unchecked": unchecked}
        return JSONResponse({**msgspec.to_builtins(accepted), **more}, 202)

    @app.get("/v1/submissions", dependencies=[scope("read")])
    @answers(Submissions)
    async def submissions(
        cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """List submissions, newest first, with the states of their chunks. `next_cursor` is set if there are more."""
        refuse_nul("cursor", cursor or "")
        found = await pool.fetch(_sql["submissions"], None, cursor, limit + 1)
        more = len(found) > limit
        shown = [_shown(row) for row in found[:limit]]
        return {"submissions": shown, "next_cursor": shown[-1]["submission_id"] if more else None}

    @app.get("/v1/submissions/{submission_id}", dependencies=[scope("read")])
    @answers(Submission, {404: "NOT_FOUND: there is no such submission."})
    async def submission(submission_id: str) -> dict[str, Any]:
        """Show a submission: the number of its chunks in each state, and what delays them."""
        refuse_nul("submission_id", submission_id)
        row = await pool.fetchrow(_sql["submissions"], submission_id, None, 1)
        if row is None:
            raise ApiError(404, "NOT_FOUND", f"there is no submission {submission_id}")
        return _shown(row)

    @app.get("/v1/workflows/check", dependencies=[scope("submit")])
    @answers(
        CheckedWorkflow,
        {
            422: (
                "UNKNOWN_WORKFLOW, UNKNOWN_VERSION: what Extend does not have; `did_you_mean` lists alternatives.",
                BadUpload,
            )
        },
    )
    async def check(
        workflow_id: Annotated[str, Query(min_length=1, max_length=255)],
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    ) -> dict[str, Any]:
        """Check, before an upload, that Extend has the workflow.

        If a version is given, check that Extend has this version too.

        If Extend cannot be asked, `workflow_unchecked` says why.
        """
        refuse_nul("workflow_id", workflow_id)
        refuse_nul("workflow_version", workflow_version or "")
        unchecked = await check_workflow(workflows, workflow_id, workflow_version)
        more = {} if unchecked is None else {"workflow_unchecked": unchecked}
        return {"workflow_id": workflow_id, "workflow_version": workflow_version, **more}

    if links is not None:
        object_routes(app, links)
    sync_routes(app, settings, pool, wake_announcer, uploads, recovery, workflows)
    batch_routes(app, settings, pool, wake_announcer, uploads, recovery, workflows, runs)
    quarantine_routes(app, Quarantine(pool, log))
    doubt_routes(app, doubts)
    cancellation_routes(app, pool, Cancellations(settings, pool, log, recovery, wake_canceller or asyncio.Event()))
    pause_routes(app, pool, log)
    retry_routes(app, settings, pool, wake_announcer, recovery)
    return app


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    names = ("submission_id", "workflow_id", "workflow_version", "priority", "expected", "batches")
    held_up = [reason for reason in (row["reasons"] or ()) if reason]
    if row["lost_inputs"]:
        held_up.append(
            f"{row['lost_inputs']} inputs were lost when the queue was restored from a backup; to send them, repeat "
            f"the upload with the Idempotency-Key {row['idempotency_key']}"
        )
    return {
        **{name: row[name] for name in names},
        "registered_batch": row["registered_batch"],
        "idempotency_key": row["idempotency_key"],
        "lost_inputs": row["lost_inputs"],
        "lost_files": row["lost_files"],
        "created_at": row["created_at"].isoformat(),
        "chunks": row["chunks"],
        "paused": row["paused"],
        "retry_at": row["retry_at"].isoformat() if row["retry_at"] else None,
        "held_up_by": held_up,
    }
