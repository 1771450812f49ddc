"""The replay service's API: jobs asked for, followed, cancelled."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Query, Request

from everyrun.http import ApiError, api, caller, scope
from everyrun.openapi import answers
from everyrun.replay.answers import Jobs, JobShown
from everyrun.replay.history.history import Historian, history_routes
from everyrun.replay.jobs.job_requests import Job
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "jobs/jobs.sql")


def replay_api(settings: Settings, pool: asyncpg.Pool, asked: Callable[[], Historian]) -> FastAPI:
    """The API; ``asked`` gives who answers for history.

    Errors are ``{"code", "message"}``; see the OpenAPI document.
    """
    title = "Rebuilds, audits and questions of the past, as jobs; the history of an id."
    app = api("Everyrun replay", title, settings, pool)
    history_routes(app, asked)

    @app.post("/v1/jobs", status_code=202, dependencies=[scope("operate")])
    @answers(JobShown)
    async def ask(job: Job, request: Request) -> dict[str, Any]:
        """Ask for a job; it waits its turn. Follow it at ``/v1/jobs/{job_id}``."""
        arguments = job.model_dump(mode="json", by_alias=True, exclude={"kind"}, exclude_none=True)
        job_id = "job_" + secrets.token_hex(10)
        return _shown(await pool.fetchrow(_sql["add"], job_id, job.kind, arguments, caller(request)))

    @app.get("/v1/jobs", dependencies=[scope("operate")])
    @answers(Jobs)
    async def jobs(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """The newest jobs, without their outcomes."""
        rows = [_shown(row) for row in await pool.fetch(_sql["jobs"], limit)]
        return {"jobs": [{name: value for name, value in row.items() if name != "outcome"} for row in rows]}

    @app.get("/v1/jobs/{job_id}", dependencies=[scope("operate")])
    @answers(JobShown, {404: "NOT_FOUND: there is no such job."})
    async def job(job_id: str) -> dict[str, Any]:
        """One job: its state, its progress (records, rate, seconds left), and its outcome once it is DONE."""
        return _shown(await pool.fetchrow(_sql["job"], _clean(job_id)), job_id)

    @app.post("/v1/jobs/{job_id}/cancel", dependencies=[scope("operate")])
    @answers(JobShown, {404: "NOT_FOUND: there is no such job.", 409: "ENDED: the job has ended; `message` says how."})
    async def cancel(job_id: str) -> dict[str, Any]:
        """Cancel a job that waits or runs. What it made stays: a later job of the same kind goes on from there."""
        row = await pool.fetchrow(_sql["cancel"], _clean(job_id))
        if row is None:
            state = _shown(await pool.fetchrow(_sql["job"], job_id), job_id)["state"]
            raise ApiError(409, "ENDED", f"the job has ended: it is {state}")
        return _shown(row)

    return app


def _clean(job_id: str) -> str:
    if "\x00" in job_id:
        raise ApiError(404, "NOT_FOUND", "there is no such job")
    return job_id


def _shown(row: asyncpg.Record | None, job_id: str = "") -> dict[str, Any]:
    if row is None:
        raise ApiError(404, "NOT_FOUND", f"there is no job {job_id}")
    return dict(row)
