"""The replay service's HTTP API: request, follow and cancel jobs, and read histories."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query, Request
from msgspec import Meta, Struct

from everyrun.http import ApiError, InvalidFieldError, api, caller, scope
from everyrun.openapi import answers
from everyrun.replay.history.api import history_routes
from everyrun.replay.history.historian import Historian
from everyrun.replay.jobs.job_requests import ArchiveJob, JobRequest, VerifyArchiveJob
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "api.sql")

Time = Annotated[str, Meta(description="RFC 3339, with an offset from UTC.")]


class JobSummary(Struct, frozen=True, kw_only=True):
    """A job: its request, state and progress."""

    job_id: str
    kind: str
    arguments: dict[str, Any]
    state: Annotated[str, Meta(description="WAITING, RUNNING, DONE, FAILED or CANCELLED.")]
    asked_by: Annotated[str, Meta(description="The name of the token that requested the job.")]
    records_done: int
    records_total: int
    rate: Annotated[
        float, Meta(description="Records per second: the present rate or, once the job has ended, the average.")
    ]
    seconds_left: float | None
    message: Annotated[str | None, Meta(description="Why the job failed, or what it is waiting for.")]
    created_at: Time
    started_at: Time | None
    ended_at: Time | None


class JobDetails(JobSummary, frozen=True, kw_only=True):
    """A job with its outcome."""

    outcome: Annotated[dict[str, Any] | None, Meta(description="The result, if the job is DONE; otherwise null.")]


class JobList(Struct, frozen=True):
    """The newest jobs, without their outcomes."""

    jobs: list[JobSummary]


def replay_api(settings: Settings, pool: asyncpg.Pool, get_historian: Callable[[], Historian]) -> FastAPI:
    """Build the API. ``get_historian`` may raise ApiError while there is no historian yet.

    Errors are ``{"code", "message"}``; see the OpenAPI document.
    """
    title = "Run rebuilds, audits, replays, archives and as-of questions as jobs, and read the history of an id."
    app = api("Everyrun replay", title, settings, pool)
    history_routes(app, get_historian)

    @app.post("/v1/jobs", status_code=202, dependencies=[scope("operate")])
    @answers(JobDetails)
    async def request_job(job: JobRequest, request: Request) -> dict[str, Any]:
        """Request a job. Jobs run one after another; ``GET /v1/jobs/{job_id}`` returns the state of this job."""
        if isinstance(job, ArchiveJob | VerifyArchiveJob) and not settings.archive_to:
            raise InvalidFieldError("kind", f"{job.kind} needs EVERYRUN_ARCHIVE_TO, which is not set")
        arguments = job.model_dump(mode="json", by_alias=True, exclude={"kind"}, exclude_none=True)
        job_id = "job_" + secrets.token_hex(10)
        return _details(await pool.fetchrow(_sql["add"], job_id, job.kind, arguments, caller(request)))

    @app.get("/v1/jobs", dependencies=[scope("operate")])
    @answers(JobList)
    async def jobs(
        limit: Annotated[int, Query(ge=1, le=1000, description="Maximum number of jobs to return.")] = 100,
    ) -> dict[str, Any]:
        """List the newest jobs, without their outcomes."""
        rows = [_details(row) for row in await pool.fetch(_sql["jobs"], limit)]
        return {"jobs": [{name: value for name, value in row.items() if name != "outcome"} for row in rows]}

    @app.get("/v1/jobs/{job_id}", dependencies=[scope("operate")])
    @answers(JobDetails, {404: "NOT_FOUND: there is no such job."})
    async def job(job_id: str) -> dict[str, Any]:
        """Return a job: its state, its progress (records, rate, seconds left), and its outcome once it is DONE."""
        return _details(await pool.fetchrow(_sql["job"], _without_nul(job_id)), job_id)

    @app.post("/v1/jobs/{job_id}/cancel", dependencies=[scope("operate")])
    @answers(
        JobDetails,
        {404: "NOT_FOUND: there is no such job.", 409: "ENDED: the job has already ended; `message` says how."},
    )
    async def cancel(job_id: str) -> dict[str, Any]:
        """Cancel a waiting or running job. Its work is kept: a later job with the same fields continues from there."""
        row = await pool.fetchrow(_sql["cancel"], _without_nul(job_id))
        if row is None:
            state = _details(await pool.fetchrow(_sql["job"], job_id), job_id)["state"]
            raise ApiError(409, "ENDED", f"the job has already ended: its state is {state}")
        return _details(row)

    return app


def _without_nul(job_id: str) -> str:
    if "\x00" in job_id:
        raise ApiError(404, "NOT_FOUND", "there is no such job")
    return job_id


def _details(row: asyncpg.Record | None, job_id: str = "") -> dict[str, Any]:
    if row is None:
        raise ApiError(404, "NOT_FOUND", f"there is no job {job_id}")
    values = dict(row)
    return {**values, "rate": rate_of(values)}


def rate_of(row: Mapping[str, Any]) -> float:
    """Return the records per second of a job: the average if the job has ended, otherwise the present rate. Pure."""
    if row["ended_at"] is None or row["started_at"] is None:
        return float(row["rate"])
    seconds = (row["ended_at"] - row["started_at"]).total_seconds()
    return round(row["records_done"] / seconds, 1) if seconds > 0 else 0.0
