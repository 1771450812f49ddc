"""The HTTP API that takes inputs in."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse

from everyrun.http import ApiError, api, scope
from everyrun.log.events import MAX_IDEMPOTENCY_KEY
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
from everyrun.submission.api.doubts import doubt_routes, pause_routes
from everyrun.submission.api.quarantine import quarantine_routes
from everyrun.submission.api.request_body import (
    BODY,
    UPLOAD_REFUSED,
    Uploads,
    check_workflow,
    no_nul,
    rows_of,
)
from everyrun.submission.doubts import Doubts
from everyrun.submission.intake.accept import (
    IdempotencyConflictError,
    QueueReplacedError,
    SubmittedBeforeError,
    take_in,
)
from everyrun.submission.intake.workflows import Workflows
from everyrun.submission.keeper import Announcer
from everyrun.submission.quarantine import Quarantine
from everyrun.submission.recovery.queue_recovery import Level, NotLevelError, restored

_sql = beside(__file__, "../queue.sql")


def submission_api(
    settings: Settings,
    pool: asyncpg.Pool,
    announcer: Announcer,
    log: Log,
    doubts: Doubts,
    level: Level,
    uploads: Uploads | None = None,
    workflows: Workflows | None = None,
) -> FastAPI:
    """Return the submission service's API. Errors are ``{"code", "message"}``; see the OpenAPI document.

    Without ``workflows`` nobody is asked whether Extend has a workflow.
    """
    app = api(
        "Everyrun submission",
        "Takes inputs in, in bulk. What is answered with 202 is sent to Extend and accounted for.",
        settings,
        pool,
        frozenset({"/v1/submissions"}),
    )
    uploads = Uploads() if uploads is None else uploads

    @app.post("/v1/submissions", status_code=202, dependencies=[scope("submit")], openapi_extra={"requestBody": BODY})
    @answers(
        Submitted,
        {
            409: (
                "IDEMPOTENCY_CONFLICT: the Idempotency-Key was used for other content. SUBMITTED_BEFORE: the very same "
                "rows were submitted before, and `once` was asked for.",
                SubmittedBefore,
            ),
            415: "UNSUPPORTED_MEDIA_TYPE: the body is neither JSON, NDJSON nor CSV, or its Content-Encoding not gzip.",
            422: (UPLOAD_REFUSED, BadUpload),
        },
    )
    async def submit(
        request: Request,
        workflow_id: Annotated[str, Query(min_length=1, max_length=255)],
        workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
        priority: Annotated[int, Query(ge=1, le=100)] = 90,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=MAX_IDEMPOTENCY_KEY)] = None,
        once: Annotated[
            bool, Query(description="Refuse with 409 (SUBMITTED_BEFORE) if the very same rows were submitted before.")
        ] = False,
    ) -> JSONResponse:
        """Take inputs in: all of them, or none. Answers 202 with submission_id, expected and batches (a count).

        The same content under the same Idempotency-Key is the same submission: the answer is the first one's. What a
        submission lost to a restored backup of the queue is filled in, and sent. Without a key the submission's id is
        its key.

        Extend is asked whether it has the workflow: 422 UNKNOWN_WORKFLOW with `did_you_mean` if it says that it has
        not, and 422 UNKNOWN_VERSION if the workflow has no such version. If Extend cannot be asked, the inputs are
        taken in, and `workflow_unchecked` says why.
        """
        no_nul("workflow_id", workflow_id)
        no_nul("workflow_version", workflow_version or "")
        try:
            async with rows_of(request, uploads, settings.upload_max_bytes) as given:
                # Of an upload with a key the log must have been asked first, if the queue may be an older one.
                incarnation = None if idempotency_key is None else await restored(level)
                # What was taken in before is answered as then, whatever became of the workflow.
                again = idempotency_key and await pool.fetchval(_sql["by_idempotency_key"], idempotency_key)
                unchecked = None if again else await check_workflow(workflows, workflow_id, workflow_version)
                accepted = await take_in(
                    pool,
                    settings,
                    given,
                    workflow_id=workflow_id,
                    workflow_version=workflow_version,
                    priority=priority,
                    idempotency_key=idempotency_key,
                    incarnation=incarnation,
                    once=once,
                )
        except QueueReplacedError:
            raise NotLevelError("the database was replaced while the upload came in; send it again") from None
        except SubmittedBeforeError as error:
            before = {"submission_id": error.submission_id, "created_at": error.created_at.isoformat()}
            raise ApiError(409, "SUBMITTED_BEFORE", str(error), **before) from None
        except IdempotencyConflictError:
            message = "this Idempotency-Key was used for other content; use a new key, or send the same content again"
            raise ApiError(409, "IDEMPOTENCY_CONFLICT", message) from None
        announcer.poke.set()
        more = {} if unchecked is None else {"workflow_unchecked": unchecked}
        return JSONResponse({**msgspec.to_builtins(accepted), **more}, 202)

    @app.get("/v1/submissions", dependencies=[scope("read")])
    @answers(Submissions)
    async def submissions(
        cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """The submissions, newest first, with what became of their chunks; next_cursor where there are more."""
        no_nul("cursor", cursor or "")
        rows = await pool.fetch(_sql["submissions"], None, cursor, limit + 1)
        more = len(rows) > limit
        shown = [_shown(row) for row in rows[:limit]]
        return {"submissions": shown, "next_cursor": shown[-1]["submission_id"] if more else None}

    @app.get("/v1/submissions/{submission_id}", dependencies=[scope("read")])
    @answers(Submission, {404: "NOT_FOUND: there is no such submission."})
    async def submission(submission_id: str) -> dict[str, Any]:
        """One submission: its chunks by state, and what holds them up."""
        no_nul("submission_id", submission_id)
        row = await pool.fetchrow(_sql["submissions"], submission_id, None, 1)
        if row is None:
            raise ApiError(404, "NOT_FOUND", f"there is no submission {submission_id}")
        return _shown(row)

    @app.get("/v1/workflows/{workflow_id}/check", dependencies=[scope("submit")])
    @answers(
        CheckedWorkflow,
        {422: ("UNKNOWN_WORKFLOW or UNKNOWN_VERSION: Extend does not have it; `did_you_mean` lists.", BadUpload)},
    )
    async def check(
        workflow_id: str, workflow_version: Annotated[str | None, Query(min_length=1, max_length=255)] = None
    ) -> dict[str, Any]:
        """Check that Extend has a workflow, and a version of it, before anything is uploaded for it.

        If Extend cannot be asked, `workflow_unchecked` says why.
        """
        no_nul("workflow_id", workflow_id)
        no_nul("workflow_version", workflow_version or "")
        unchecked = await check_workflow(workflows, workflow_id, workflow_version)
        more = {} if unchecked is None else {"workflow_unchecked": unchecked}
        return {"workflow_id": workflow_id, "workflow_version": workflow_version, **more}

    batch_routes(app, settings, pool, announcer, uploads, level, workflows)
    quarantine_routes(app, Quarantine(pool, log))
    doubt_routes(app, doubts)
    pause_routes(app, pool, log)
    return app


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    names = ("submission_id", "workflow_id", "workflow_version", "priority", "expected", "batches")
    held_up = [reason for reason in (row["reasons"] or ()) if reason]
    if row["lost_inputs"]:
        held_up.append(
            f"{row['lost_inputs']} inputs were lost with the queue's backup; to send them, repeat the upload with the "
            f"Idempotency-Key {row['idempotency_key']}"
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
