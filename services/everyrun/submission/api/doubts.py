"""Serve the decisions of people about chunks in doubt, and about pauses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import asyncpg
from aiokafka.errors import KafkaError
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from everyrun.http import ApiError, caller, scope
from everyrun.log.producer import Log
from everyrun.openapi import answers
from everyrun.projection.offsets import ForeignLogError
from everyrun.store.sql import beside
from everyrun.submission.api.answers import DoubtDetail, PausedWorkflows, SubmissionPause, WorkflowPause
from everyrun.submission.api.answers import Doubts as DoubtsPage
from everyrun.submission.decisions import pauses
from everyrun.submission.decisions.doubts import DecisionError, Doubts
from everyrun.submission.dispatch.transitions import UnknownChunkError

_sql = beside(__file__, "api.sql")

_NO_NUL = r"^[^\x00]+$"
Name = Annotated[str, Query(min_length=1, max_length=255, pattern=_NO_NUL)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class DecisionReason(BaseModel):
    """The person who decides, and the reason."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(
        min_length=1, max_length=1000, pattern=_NO_NUL, description="The reason, which is kept with the decision."
    )
    by: str = Field(
        "",
        max_length=200,
        pattern=r"^[^\x00]*$",
        description="The person who decides. It is stored as `PERSON (NAME OF THE API TOKEN)`.",
    )


class ForcibleDecision(DecisionReason):
    """A decision that evidence could still contradict."""

    force: bool = Field(False, description="Decide even though evidence may still come.")


class Adoption(DecisionReason):
    """A decision that the chunk became this batch."""

    batch_id: str = Field(min_length=1, max_length=255, pattern=_NO_NUL)


def decided_by(request: Request, by: str) -> str:
    """Return who decides: ``by``, and the name of the token in parentheses.

    If ``by`` is empty, return only the token's name.
    """
    name = caller(request)
    return f"{by} ({name})" if by else name


def _error(error: Exception) -> ApiError:
    if isinstance(error, DecisionError):
        return ApiError(error.status, error.code, str(error))
    if isinstance(error, UnknownChunkError):
        return ApiError(404, "NOT_FOUND", str(error))
    message = "the log does not answer, so the decision may be lost; send the same request again"
    return ApiError(503, "UNAVAILABLE", f"{message} ({type(error).__name__})")


_ERRORS = (DecisionError, UnknownChunkError, KafkaError, ForeignLogError)


def doubt_routes(app: FastAPI, doubts: Doubts) -> None:
    """Add the routes under ``/v1/doubts``."""

    @app.get("/v1/doubts", dependencies=[scope("read")])
    @answers(DoubtsPage)
    async def list_doubts(
        submission_id: Name | None = None,
        state: Literal["in_doubt", "held"] | None = None,
        cursor: Name | None = None,
        limit: Limit = 100,
    ) -> dict[str, Any]:
        """List chunks whose outcome is unknown, with what each one waits for and which decisions are possible."""
        found = await doubts.page(submission_id, state, cursor, limit + 1)
        more = len(found) > limit
        return {"doubts": found[:limit], "next_cursor": found[limit - 1]["chunk"] if more else None}

    @app.get("/v1/doubts/{chunk}", dependencies=[scope("read")])
    @answers(DoubtDetail, {404: "NOT_FOUND: there is no such chunk."})
    async def show_doubt(chunk: str) -> dict[str, Any]:
        """Show a chunk: its attempts, the unmatched runs that name it, and the decisions about it."""
        return await _shown(doubts, chunk)

    @app.post("/v1/doubts/{chunk}/adopt", dependencies=[scope("operate")])
    @answers(
        DoubtDetail,
        {
            404: "NOT_FOUND: there is no such chunk.",
            409: "NOT_IN_DOUBT, BATCH_KNOWN, NOT_OURS, OTHER_CHUNK, NO_RUNS: why the chunk cannot adopt the batch.",
            502: "EXTEND: Extend could not be asked about the batch.",
        },
    )
    async def adopt(request: Request, chunk: str, adoption: Adoption) -> dict[str, Any]:
        """Decide that the chunk became this batch.

        Everyrun fetches a run of the batch. The reserved key of this run must name the chunk.
        """
        try:
            await doubts.adopt(_refuse_nul(chunk), adoption.batch_id, decided_by(request, adoption.by), adoption.reason)
        except _ERRORS as error:
            raise _error(error) from None
        return await _shown(doubts, chunk)

    @app.post("/v1/doubts/{chunk}/resend", dependencies=[scope("operate")])
    @answers(
        DoubtDetail,
        {
            404: "NOT_FOUND: there is no such chunk.",
            409: "NOT_IN_DOUBT, WINDOW_OPEN, FILES_LOST, CANCELLED: why the chunk cannot be resent now.",
        },
    )
    async def resend(request: Request, chunk: str, decision: ForcibleDecision) -> dict[str, Any]:
        """Resend the chunk. Answers 409 WINDOW_OPEN while evidence may still come, unless `force` is set."""
        try:
            await doubts.resend(
                _refuse_nul(chunk), decided_by(request, decision.by), decision.reason, force=decision.force
            )
        except _ERRORS as error:
            raise _error(error) from None
        return await _shown(doubts, chunk)

    @app.post("/v1/doubts/{chunk}/discard", dependencies=[scope("operate")])
    @answers(
        DoubtDetail,
        {
            404: "NOT_FOUND: there is no such chunk.",
            409: "NOT_IN_DOUBT, WINDOW_OPEN: why the chunk cannot be discarded now.",
        },
    )
    async def discard(request: Request, chunk: str, decision: ForcibleDecision) -> dict[str, Any]:
        """Never resend the chunk: its inputs become REFUSED (DISCARDED).

        If a run of the chunk appears later, it is still shown.
        """
        try:
            await doubts.discard(
                _refuse_nul(chunk), decided_by(request, decision.by), decision.reason, force=decision.force
            )
        except _ERRORS as error:
            raise _error(error) from None
        return await _shown(doubts, chunk)


async def _shown(doubts: Doubts, chunk: str) -> dict[str, Any]:
    try:
        return await doubts.show(_refuse_nul(chunk))
    except DecisionError as error:
        raise _error(error) from None


def _refuse_nul(text: str) -> str:
    if "\x00" in text:
        raise ApiError(422, "INVALID_REQUEST", "the path has a NUL character")
    return text


def pause_routes(app: FastAPI, pool: asyncpg.Pool, log: Log) -> None:
    """Add the routes that list pauses, and those that pause and resume workflows and submissions."""

    @app.get("/v1/workflows/paused", dependencies=[scope("read")])
    @answers(PausedWorkflows)
    async def paused_workflows(cursor: Name | None = None, limit: Limit = 100) -> dict[str, Any]:
        """List paused workflows: the reason, who paused each, and since when.

        `by` is null if Everyrun paused the workflow because Extend blocked it.
        """
        rows = await pool.fetch(_sql["pauses"], "workflow", cursor, limit + 1)
        shown = [
            {"workflow_id": r["id"], "reason": r["reason"], "by": r["decided_by"], "since": r["since"].isoformat()}
            for r in rows[:limit]
        ]
        return {"workflows": shown, "next_cursor": rows[limit - 1]["id"] if len(rows) > limit else None}

    async def change(target: pauses.PauseTarget, request: Request, why: DecisionReason, pause: bool) -> dict[str, Any]:
        if not await pool.fetchval(_sql[f"{target.kind}_known"], _refuse_nul(target.id)):
            raise ApiError(404, "NOT_FOUND", f"there is no {target.kind} {target.id}")
        apply = pauses.pause if pause else pauses.resume
        try:
            async with pool.acquire() as connection, connection.transaction():
                changed = await apply(connection, log, target, why.reason, decided_by(request, why.by))
        except KafkaError as error:
            raise _error(error) from None
        workflow_id = target.id if target.kind == "workflow" else await pool.fetchval(_sql["workflow_of"], target.id)
        waits = {row["waits_for"]: row["inputs"] for row in await pool.fetch(_sql["unsettled_inputs"], *target)}
        submitted = await pool.fetchval(_sql["submitted_inputs"], *target)
        inputs = {"submitted": submitted, **pauses.pause_counts(waits), "waits_for": waits}
        return {target.kind + "_id": target.id, "workflow_id": workflow_id, "paused": pause, "changed": changed} | {
            "inputs": inputs
        }

    @app.post("/v1/workflows/{workflow_id}/pause", dependencies=[scope("operate")])
    @answers(WorkflowPause, {404: "NOT_FOUND: no submission has this workflow."})
    async def pause_workflow(request: Request, workflow_id: str, why: DecisionReason) -> dict[str, Any]:
        """Pause a workflow: nothing more is sent for it. Calls in progress are completed.

        `inputs` shows how many of the workflow's inputs are waiting, how many are in a call, how many are in doubt, and
        how many are submitted.
        """
        return await change(pauses.PauseTarget("workflow", workflow_id), request, why, True)

    @app.post("/v1/workflows/{workflow_id}/resume", dependencies=[scope("operate")])
    @answers(WorkflowPause, {404: "NOT_FOUND: no submission has this workflow."})
    async def resume_workflow(request: Request, workflow_id: str, why: DecisionReason) -> dict[str, Any]:
        """Resume a workflow. `inputs.will_be_sent` counts the waiting inputs that nothing else delays."""
        return await change(pauses.PauseTarget("workflow", workflow_id), request, why, False)

    @app.post("/v1/submissions/{submission_id}/pause", dependencies=[scope("operate")])
    @answers(SubmissionPause, {404: "NOT_FOUND: there is no such submission."})
    async def pause_submission(request: Request, submission_id: str, why: DecisionReason) -> dict[str, Any]:
        """Pause a submission: nothing more of it is sent. Batches that Extend has accepted continue."""
        return await change(pauses.PauseTarget("submission", submission_id), request, why, True)

    @app.post("/v1/submissions/{submission_id}/resume", dependencies=[scope("operate")])
    @answers(SubmissionPause, {404: "NOT_FOUND: there is no such submission."})
    async def resume_submission(request: Request, submission_id: str, why: DecisionReason) -> dict[str, Any]:
        """Resume a submission. `inputs.will_be_sent` counts the waiting inputs that nothing else delays."""
        return await change(pauses.PauseTarget("submission", submission_id), request, why, False)
