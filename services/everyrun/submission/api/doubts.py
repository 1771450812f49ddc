"""The routes by which a person decides: on chunks in doubt, and on what is paused."""

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
from everyrun.submission import pauses
from everyrun.submission.api.answers import Doubts as DoubtsPage
from everyrun.submission.api.answers import OneDoubt, PausedWorkflows, SubmissionPause, WorkflowPause
from everyrun.submission.dispatch.transitions import UnknownChunkError
from everyrun.submission.doubts import DecisionError, Doubts

_sql = beside(__file__, "../queue.sql")

_NO_NUL = r"^[^\x00]+$"
Name = Annotated[str, Query(min_length=1, max_length=255, pattern=_NO_NUL)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Why(BaseModel):
    """Who decides, and why."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=1000, pattern=_NO_NUL, description="Why; kept with the decision.")
    by: str = Field("", max_length=200, pattern=r"^[^\x00]*$", description="Who, beside the name of the token.")


class Unproved(Why):
    """A decision that evidence could still contradict."""

    force: bool = Field(False, description="Decide although evidence may still come.")


class Named(Why):
    """The batch that a chunk became."""

    batch_id: str = Field(min_length=1, max_length=255, pattern=_NO_NUL)


def _who(request: Request, why: Why) -> str:
    name = caller(request)
    return f"{why.by} ({name})" if why.by else name


def _error(error: Exception) -> ApiError:
    if isinstance(error, DecisionError):
        return ApiError(error.status, error.code, str(error))
    if isinstance(error, UnknownChunkError):
        return ApiError(404, "NOT_FOUND", str(error))
    message = "the log does not answer, so nothing is decided for certain; the same request again doubles nothing"
    return ApiError(503, "UNAVAILABLE", f"{message} ({type(error).__name__})")


_ERRORS = (DecisionError, UnknownChunkError, KafkaError, ForeignLogError)


def doubt_routes(app: FastAPI, doubts: Doubts) -> None:
    """Add ``/v1/doubts`` and what is below it."""

    @app.get("/v1/doubts", dependencies=[scope("read")])
    @answers(DoubtsPage)
    async def list_doubts(
        submission_id: Name | None = None,
        state: Literal["in_doubt", "held"] | None = None,
        cursor: Name | None = None,
        limit: Limit = 100,
    ) -> dict[str, Any]:
        """Chunks whose outcome is unknown: what each waits for, and what a person can do."""
        found = await doubts.page(submission_id, state, cursor, limit + 1)
        more = len(found) > limit
        return {"doubts": found[:limit], "next_cursor": found[limit - 1]["chunk"] if more else None}

    @app.get("/v1/doubts/{chunk}", dependencies=[scope("read")])
    @answers(OneDoubt, {404: "NOT_FOUND: there is no such chunk."})
    async def show_doubt(chunk: str) -> dict[str, Any]:
        """One chunk: its attempts, the runs that name it and match no input, the decisions taken."""
        return await _shown(doubts, chunk)

    @app.post("/v1/doubts/{chunk}/adopt", dependencies=[scope("operate")])
    @answers(
        OneDoubt,
        {
            404: "NOT_FOUND: there is no such chunk.",
            409: "NOT_IN_DOUBT, BATCH_KNOWN, NOT_OURS, OTHER_CHUNK, NO_RUNS: why the batch cannot be the chunk's.",
            502: "EXTEND: Extend could not be asked about the batch.",
        },
    )
    async def adopt(request: Request, chunk: str, named: Named) -> dict[str, Any]:
        """The chunk became this batch. A run of the batch is asked for, and must name the chunk."""
        try:
            await doubts.adopt(_clean(chunk), named.batch_id, _who(request, named), named.reason)
        except _ERRORS as error:
            raise _error(error) from None
        return await _shown(doubts, chunk)

    @app.post("/v1/doubts/{chunk}/resend", dependencies=[scope("operate")])
    @answers(
        OneDoubt,
        {
            404: "NOT_FOUND: there is no such chunk.",
            409: "NOT_IN_DOUBT, WINDOW_OPEN, FILES_LOST: why it cannot be sent again now.",
        },
    )
    async def resend(request: Request, chunk: str, unproved: Unproved) -> dict[str, Any]:
        """Send the chunk again. 409 WINDOW_OPEN while evidence may still come, unless forced."""
        try:
            await doubts.resend(_clean(chunk), _who(request, unproved), unproved.reason, force=unproved.force)
        except _ERRORS as error:
            raise _error(error) from None
        return await _shown(doubts, chunk)

    @app.post("/v1/doubts/{chunk}/discard", dependencies=[scope("operate")])
    @answers(
        OneDoubt,
        {
            404: "NOT_FOUND: there is no such chunk.",
            409: "NOT_IN_DOUBT, WINDOW_OPEN: why it cannot be discarded now.",
        },
    )
    async def discard(request: Request, chunk: str, unproved: Unproved) -> dict[str, Any]:
        """Do not send the chunk again: its inputs are REFUSED, DISCARDED. A run that comes all the same is shown."""
        try:
            await doubts.discard(_clean(chunk), _who(request, unproved), unproved.reason, force=unproved.force)
        except _ERRORS as error:
            raise _error(error) from None
        return await _shown(doubts, chunk)


async def _shown(doubts: Doubts, chunk: str) -> dict[str, Any]:
    try:
        return await doubts.show(_clean(chunk))
    except DecisionError as error:
        raise _error(error) from None


def _clean(text: str) -> str:
    if "\x00" in text:
        raise ApiError(422, "INVALID_REQUEST", "a NUL character in the path")
    return text


def pause_routes(app: FastAPI, pool: asyncpg.Pool, log: Log) -> None:
    """Add what pauses and resumes workflows and submissions."""

    @app.get("/v1/workflows/paused", dependencies=[scope("read")])
    @answers(PausedWorkflows)
    async def paused_workflows(cursor: Name | None = None, limit: Limit = 100) -> dict[str, Any]:
        """Workflows that nothing is sent for: why, by whom (null: Extend refused), since when."""
        rows = await pool.fetch(_sql["pauses"], "workflow", cursor, limit + 1)
        shown = [
            {"workflow_id": r["id"], "reason": r["reason"], "by": r["decided_by"], "since": r["since"].isoformat()}
            for r in rows[:limit]
        ]
        return {"workflows": shown, "next_cursor": rows[limit - 1]["id"] if len(rows) > limit else None}

    async def change(what: pauses.Pause, request: Request, why: Why, pause: bool) -> dict[str, Any]:
        if not await pool.fetchval(_sql[f"{what.kind}_known"], _clean(what.id)):
            raise ApiError(404, "NOT_FOUND", f"there is no {what.kind} {what.id}")
        to = pauses.pause if pause else pauses.resume
        try:
            async with pool.acquire() as connection, connection.transaction():
                changed = await to(connection, log, what, why.reason, _who(request, why))
        except KafkaError as error:
            raise _error(error) from None
        workflow_id = what.id if what.kind == "workflow" else await pool.fetchval(_sql["workflow_of"], what.id)
        waits = {row["waits_for"]: row["inputs"] for row in await pool.fetch(_sql["stopped_inputs"], *what)}
        sent = await pool.fetchval(_sql["sent_inputs"], *what)
        inputs = {"sent": sent, **pauses.standing(waits), "waits_for": waits}
        return {what.kind + "_id": what.id, "workflow_id": workflow_id, "paused": pause, "changed": changed} | {
            "inputs": inputs
        }

    @app.post("/v1/workflows/{workflow_id}/pause", dependencies=[scope("operate")])
    @answers(WorkflowPause, {404: "NOT_FOUND: nothing was handed in for such a workflow."})
    async def pause_workflow(request: Request, workflow_id: str, why: Why) -> dict[str, Any]:
        """Send nothing for the workflow. Calls in progress end as they do.

        `inputs` says how many wait, are in a call, in doubt, and sent.
        """
        return await change(pauses.Pause("workflow", workflow_id), request, why, True)

    @app.post("/v1/workflows/{workflow_id}/resume", dependencies=[scope("operate")])
    @answers(WorkflowPause, {404: "NOT_FOUND: nothing was handed in for such a workflow."})
    async def resume_workflow(request: Request, workflow_id: str, why: Why) -> dict[str, Any]:
        """Send for the workflow again. `inputs.will_be_sent` of those that wait are not held up by something else."""
        return await change(pauses.Pause("workflow", workflow_id), request, why, False)

    @app.post("/v1/submissions/{submission_id}/pause", dependencies=[scope("operate")])
    @answers(SubmissionPause, {404: "NOT_FOUND: there is no such submission."})
    async def pause_submission(request: Request, submission_id: str, why: Why) -> dict[str, Any]:
        """Send nothing more of the submission. Batches that are sent go on."""
        return await change(pauses.Pause("submission", submission_id), request, why, True)

    @app.post("/v1/submissions/{submission_id}/resume", dependencies=[scope("operate")])
    @answers(SubmissionPause, {404: "NOT_FOUND: there is no such submission."})
    async def resume_submission(request: Request, submission_id: str, why: Why) -> dict[str, Any]:
        """Send of the submission again. `inputs.will_be_sent` of those that wait are not held up by something else."""
        return await change(pauses.Pause("submission", submission_id), request, why, False)
