"""Serve retries: send settled inputs of a submission again, and list the retries of a submission."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from everyrun.errors import NotFound
from everyrun.http import ApiError, InvalidFieldError, scope
from everyrun.log.events import MAX_IDEMPOTENCY_KEY, RetryFilter
from everyrun.openapi import answers
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.api.answers import RetriesOf, RetryRefused
from everyrun.submission.api.doubts import DecisionReason, decided_by
from everyrun.submission.api.request_body import refuse_nul
from everyrun.submission.intake.rows import BadRow, check_row
from everyrun.submission.recovery.queue_recovery import QueueRecovery, require_restored
from everyrun.submission.retry.accept import RETRYABLE, AcceptedRetry, Chosen, accept_retry, preview

_sql = beside(__file__, "api.sql")


class Filter(BaseModel):
    """Chooses the inputs that are sent again: those that meet every given condition."""

    model_config = ConfigDict(extra="forbid")

    statuses: list[str] = Field(
        default_factory=list, description=f"Only inputs with one of these statuses: {', '.join(RETRYABLE)}."
    )
    reasons: list[str] = Field(default_factory=list, description="Only inputs with one of these failure_reasons.")
    ids: list[str] = Field(
        default_factory=list, max_length=1_000_000, description="Only inputs with one of these external ids."
    )
    where: dict[str, str] = Field(
        default_factory=dict,
        description="Only inputs whose metadata have these values, as text. A key may be a path: customer.id.",
    )
    limit: int | None = Field(default=None, ge=1, description="At most so many inputs, in the order of the submission.")


class NewFile(BaseModel):
    """A new file for an input, instead of the one that it was submitted with."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, description="The external id of the input.")
    file: dict[str, Any] = Field(description="The file, as in a submission.")


class RetryRequest(DecisionReason):
    """A request to send inputs again."""

    filter: Filter = Field(default_factory=lambda: Filter())
    files: list[NewFile] = Field(
        default_factory=list,
        description="New files of inputs that the filter chooses. Needed if the link or password of the input's file "
        "was removed.",
    )


def retry_routes(
    app: FastAPI, settings: Settings, pool: asyncpg.Pool, wake_announcer: asyncio.Event, recovery: QueueRecovery
) -> None:
    """Add the routes under ``/v1/submissions/{submission_id}/retries``."""

    @app.post("/v1/submissions/{submission_id}/retries", status_code=202, dependencies=[scope("operate")])
    @answers(
        AcceptedRetry,
        {
            404: "NOT_FOUND: there is no such submission.",
            409: (
                "NOTHING_TO_RETRY: no input meets the filter. FILES_NEEDED: inputs cannot be sent again without a new "
                "file. NOT_OURS: another program sent the batch. IDEMPOTENCY_CONFLICT: the Idempotency-Key was used "
                "for another retry.",
                RetryRefused,
            ),
        },
    )
    async def retry(
        request: Request,
        submission_id: str,
        wanted: RetryRequest,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=MAX_IDEMPOTENCY_KEY)] = None,
    ) -> JSONResponse:
        """Give inputs of a submission a new try: FAILED, REJECTED, CANCELLED, REFUSED and MISSING ones.

        A MISSING input is one whose run Extend no longer has. All inputs that meet the filter are sent again, or none.
        They keep their ids; `results` shows the newest try, and the runs of earlier tries are counted as superseded.
        """
        refuse_nul("submission_id", submission_id)
        chosen_by = _filter(wanted.filter)
        files = _new_files(wanted.files, submission_id, settings.row_max_bytes)
        incarnation = await require_restored(recovery)
        accepted = await accept_retry(
            pool,
            submission_id,
            chosen_by,
            by=decided_by(request, wanted.by),
            reason=wanted.reason,
            key=idempotency_key,
            files=files,
            incarnation=incarnation,
        )
        wake_announcer.set()
        return JSONResponse(msgspec.to_builtins(accepted), 202)

    @app.post("/v1/submissions/{submission_id}/retries/preview", dependencies=[scope("operate")])
    @answers(Chosen, {404: "NOT_FOUND: there is no such submission.", 409: "NOT_OURS: another program sent the batch."})
    async def preview_retry(submission_id: str, wanted: RetryRequest) -> dict[str, Any]:
        """Count what the same request to `retries` would send again. Nothing is sent."""
        refuse_nul("submission_id", submission_id)
        files = _new_files(wanted.files, submission_id, settings.row_max_bytes)
        found: dict[str, Any] = msgspec.to_builtins(await preview(pool, submission_id, _filter(wanted.filter), files))
        return found

    @app.get("/v1/submissions/{submission_id}/retries", dependencies=[scope("read")])
    @answers(RetriesOf, {404: "NOT_FOUND: there is no such submission."})
    async def retries(submission_id: str) -> dict[str, Any]:
        """List the retries of a submission, the oldest first."""
        refuse_nul("submission_id", submission_id)
        if not await pool.fetchval(_sql["submission_known"], submission_id):
            raise NotFound(f"there is no submission {submission_id}")
        return {"retries": [_shown(row) for row in await pool.fetch(_sql["retries"], submission_id)]}


def _filter(given: Filter) -> RetryFilter:
    for name, values in (("statuses", given.statuses), ("reasons", given.reasons), ("ids", given.ids)):
        for value in values:
            refuse_nul(f"filter.{name}", value)
    for key, value in given.where.items():
        refuse_nul("filter.where", key + value)
    wrong = sorted(set(given.statuses) - set(RETRYABLE))
    if wrong:
        raise InvalidFieldError(
            "filter.statuses", f"inputs that are {wrong[0]} cannot be retried; possible: {', '.join(RETRYABLE)}"
        )
    return RetryFilter(given.statuses, given.reasons, given.ids, given.where, given.limit)


def _new_files(given: list[NewFile], submission_id: str, max_bytes: int) -> dict[str, bytes]:
    """Return the files as the queue stores them, by external id. Raises ApiError that names the first bad one."""
    files: dict[str, bytes] = {}
    for number, new in enumerate(given, 1):
        row = check_row(number, {"id": new.id, "file": new.file}, submission_id, max_bytes)
        if isinstance(row, BadRow):
            raise ApiError(422, "BAD_FILE", f"files: entry {number} ({new.id}): {row.field}: {row.reason}")
        if row.external_id in files:
            raise ApiError(422, "BAD_FILE", f"files: entry {number} ({new.id}): this id is in an earlier entry too")
        files[row.external_id] = row.file
    return files


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "retry": row["retry"],
        "inputs": row["inputs"],
        "filter": msgspec.json.decode(row["chosen"]),
        "by": row["requested_by"],
        "reason": row["reason"],
        "created_at": row["created_at"].isoformat(),
        "waiting": row["waiting"],
    }
