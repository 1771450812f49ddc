"""Serve cancellations: preview them, request them, and show how far they are."""

from __future__ import annotations

from typing import Annotated, Any

import asyncpg
from aiokafka.errors import KafkaError
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from everyrun.http import ApiError, scope
from everyrun.openapi import answers
from everyrun.projection.offsets import ForeignLogError
from everyrun.redact import describe
from everyrun.store.sql import Row, beside
from everyrun.submission.api.answers import Cancellation, CancellationPreview, CancellationsPage
from everyrun.submission.api.doubts import DecisionReason, Limit, Name, decided_by
from everyrun.submission.api.request_body import refuse_nul
from everyrun.submission.cancellations.requests import Cancellations, Scope, count

_sql = beside(__file__, "../cancellations/cancellations.sql")
#: Maximum number of ids in one request, so that the event about them fits into the log.
MAX_IDS = 50_000
_OUTCOMES = ("cancelled_unsent", "cancelled", "finished", "in_review", "refused", "gone")
_NOT_FOUND = {404: "NOT_FOUND: there is no such submission."}


class CancellationRequest(DecisionReason):
    """The person who cancels, and the reason."""

    dry_run: bool = Field(False, description="Only count what would be cancelled.")


class SubmissionCancellation(CancellationRequest):
    """The person who cancels, the reason and, if not all inputs are meant, their ids."""

    ids: list[Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")]] | None = Field(
        None,
        min_length=1,
        max_length=MAX_IDS,
        description="External ids of the inputs to cancel. If absent, all inputs of the submission are cancelled.",
    )


def cancellation_routes(app: FastAPI, pool: asyncpg.Pool, cancellations: Cancellations) -> None:
    """Add the routes that request and show cancellations."""

    async def respond(request: Request, wanted: Scope, body: CancellationRequest) -> JSONResponse:
        try:
            if body.dry_run:
                cancellation_id, counts = None, await cancellations.preview(wanted)
            else:
                cancellation_id, _, counts = await cancellations.request(
                    wanted, decided_by(request, body.by), body.reason
                )
        except (KafkaError, ForeignLogError) as error:
            message = "the log does not answer, so the cancellation may be lost; send the same request again"
            raise ApiError(503, "UNAVAILABLE", f"{message} ({describe(error)})") from None
        answer = {
            "cancellation_id": cancellation_id,
            "submission_id": wanted.submission_id,
            "scope": wanted.named,
            "batch_id": wanted.batch_id,
            "inputs": counts.plain(),
        }
        return JSONResponse(answer, 202)

    @app.post("/v1/submissions/{submission_id}/cancellations", status_code=202, dependencies=[scope("operate")])
    @answers(
        CancellationPreview,
        {
            **_NOT_FOUND,
            422: "INVALID_REQUEST: a field of the body is wrong. UNKNOWN_INPUTS: the submission has no inputs with "
            "some of the ids; nothing was cancelled.",
        },
    )
    async def cancel_submission(request: Request, submission_id: str, body: SubmissionCancellation) -> JSONResponse:
        """Cancel a submission, or some of its inputs.

        Inputs that are not sent are cancelled before the answer. The runs of the others are cancelled at Extend soon
        after it. `inputs` counts them as they were before.

        Answers 202 with `cancellation_id`, which is null if `dry_run` was set, or if there was nothing to cancel.
        """
        refuse_nul("submission_id", submission_id)
        return await respond(request, await cancellations.of_submission(submission_id, body.ids), body)

    @app.post("/v1/batches/{batch_id}/cancellations", status_code=202, dependencies=[scope("operate")])
    @answers(CancellationPreview, {404: "NOT_FOUND: Everyrun neither sent the batch, nor was it registered."})
    async def cancel_batch(request: Request, batch_id: str, body: CancellationRequest) -> JSONResponse:
        """Cancel the runs of a batch at Extend. The batch may also be one that was registered."""
        refuse_nul("batch_id", batch_id)
        return await respond(request, await cancellations.of_batch(batch_id), body)

    @app.get("/v1/cancellations", dependencies=[scope("read")])
    @answers(CancellationsPage)
    async def list_cancellations(
        submission_id: Annotated[Name | None, Query(description="Only those of this submission.")] = None,
        cursor: Name | None = None,
        limit: Limit = 100,
    ) -> dict[str, Any]:
        """List cancellations, newest first. `next_cursor` is set if there are more."""
        rows = await pool.fetch(_sql["cancellations"], submission_id, cursor, limit + 1)
        more = len(rows) > limit
        shown = [_shown(row) for row in rows[:limit]]
        return {"cancellations": shown, "next_cursor": shown[-1]["cancellation_id"] if more else None}

    @app.get("/v1/cancellations/{cancellation_id}", dependencies=[scope("read")])
    @answers(Cancellation, {404: "NOT_FOUND: there is no such cancellation."})
    async def show_cancellation(cancellation_id: str) -> dict[str, Any]:
        """Show a cancellation: its inputs as they are now, and what was cancelled."""
        refuse_nul("cancellation_id", cancellation_id)
        row = await pool.fetchrow(_sql["cancellation"], cancellation_id)
        if row is None:
            raise ApiError(404, "NOT_FOUND", f"there is no cancellation {cancellation_id}")
        counts = await count(pool, row["submission_id"], row["positions"])
        found = {one["name"]: one["inputs"] for one in await pool.fetch(_sql["outcome_counts"], cancellation_id)}
        return {
            **_shown(row),
            "inputs": counts.plain(),
            "outcomes": {name: found.get(name, 0) for name in _OUTCOMES},
        }


def _shown(row: Row) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("cancellation_id", "submission_id", "scope", "batch_id", "reason", "problem")},
        "by": row["requested_by"],
        "requested_at": row["requested_at"].isoformat(),
        "ended_at": row["ended_at"].isoformat() if row["ended_at"] else None,
    }
