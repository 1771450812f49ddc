"""Serve the emulator's own routes, which need no token.

They open signed links, do what a person does in Extend's dashboard, change the faults, and tell tests what really
happened to each run ("the truth").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from everyrun.emulator import render
from everyrun.emulator.engine import Engine
from everyrun.emulator.faults import InvalidFaultsError, parse_faults
from everyrun.emulator.responses import json_body, json_response
from everyrun.emulator.runs import FAILURES, FINAL, Run
from everyrun.emulator.validate import ApiProblem, invalid

_encode = msgspec.json.encode


def admin_routes(engine: Engine) -> list[Route]:
    """Return the routes below ``/_emulator``, ``/_files`` and ``/_signed``."""
    admin = _Admin(engine)
    return [
        Route("/_signed/{token}", admin.signed),
        Route("/_files/{token}", admin.file),
        Route("/_emulator/truth", admin.truth),
        Route("/_emulator/stats", admin.stats),
        Route("/_emulator/batches", admin.batches),
        Route("/_emulator/faults", admin.change_faults, methods=["PUT"]),
        Route("/_emulator/runs/{id}", admin.act, methods=["POST"]),
    ]


class _Admin:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def signed(self, request: Request) -> Response:
        """Answer GET /_signed/{token} with a webhook's payload. Like a storage service, refuse a bad link with 403."""
        payload = self._engine.webhooks.open_link(request.path_params["token"], self._engine.runs)
        if payload is None:
            return _denied()
        return Response(payload, 200, media_type="application/json")

    async def file(self, request: Request) -> Response:
        """Answer GET /_files/{token} with the content of a file, or with 403 if the link is not valid."""
        content = self._engine.files.open_link(request.path_params["token"])
        return _denied() if content is None else Response(content, 200, media_type="application/octet-stream")

    async def act(self, request: Request) -> Response:
        """Handle POST /_emulator/runs/{id} with {"action": ...}: do what a person does in the dashboard."""
        try:
            body = await json_body(request)
            if not isinstance(body, dict):
                raise invalid("the body must be an object")
            run = await self._engine.act(request.path_params["id"], body.get("action"))
        except ApiProblem as problem:
            return json_response(problem.status, problem)
        return json_response(
            200, render.run(run.by_clock(self._engine.dice.clock_offset), self._engine.workflow_made_at)
        )

    async def change_faults(self, request: Request) -> Response:
        """Handle PUT /_emulator/faults with {"faults": "NAME=VALUE,..."}: use these faults until the process ends."""
        try:
            body = await json_body(request)
            if not isinstance(body, dict) or not isinstance(body.get("faults"), str):
                raise invalid("faults: must be a string, as for --faults")
            try:
                faults = parse_faults(body["faults"])
            except InvalidFaultsError as error:
                raise invalid(f"faults: {error}") from None
        except ApiProblem as problem:
            return json_response(problem.status, problem)
        self._engine.dice.change(faults)
        return json_response(200, {"faults": faults})

    async def truth(self, request: Request) -> Response:
        """Answer GET /_emulator/truth with NDJSON: one line per run, oldest first.

        With the query parameter ``skip=N``, the N oldest runs are left out.
        """
        skip = request.query_params.get("skip", "0")
        if not skip.isdecimal():
            problem = invalid("skip: must be a number of runs")
            return json_response(problem.status, problem)

        async def lines() -> AsyncIterator[bytes]:
            for start in range(int(skip), len(self._engine.runs), 500):
                yield b"".join(_encode(truth_line(run)) + b"\n" for run in self._engine.runs[start : start + 500])
                await asyncio.sleep(0)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def stats(self, _request: Request) -> Response:
        """Answer GET /_emulator/stats with counts of requests, batches, runs and webhooks."""
        engine = self._engine
        open_runs = sum(run.status not in FINAL and not run.deleted for run in engine.runs)
        return json_response(
            200,
            {
                "requests": engine.requests,
                "refused": engine.refused,
                "batches": len(engine.by_batch),
                "runs": len(engine.runs),
                "open_runs": open_runs,
                "most_open_runs": engine.most_open_runs,
                "webhooks": engine.webhooks.counts,
            },
        )

    async def batches(self, _request: Request) -> Response:
        """Answer GET /_emulator/batches with NDJSON: one line per batch."""
        rows = [
            {"batch_id": batch_id, "runs": runs, "accepted_at": at, "answered": bool(answered)}
            for batch_id, runs, at, answered in await self._engine.store.batches()
        ]
        return Response(b"".join(_encode(row) + b"\n" for row in rows), media_type="application/x-ndjson")


def _denied() -> Response:
    return Response(b"<Error><Code>AccessDenied</Code></Error>", 403, media_type="application/xml")


def truth_line(run: Run) -> dict[str, Any]:
    """Return what really happened to a run, so that tests can compare it with Everyrun's tables."""
    reason = FAILURES[run.number % len(FAILURES)][0] if run.status == "FAILED" else None
    return {
        "run_id": run.id,
        "batch_id": run.batch_id,
        "workflow_id": run.workflow_id,
        "status": run.status,
        "failure_reason": reason,
        "metadata": msgspec.Raw(run.metadata),
        "created_at": render.time(run.created_at),
        "started_at": render.time(run.starts_at) if run.started else None,
        "ended_at": render.time(run.ends_at) if run.status in (*FINAL, "NEEDS_REVIEW") else None,
        "deleted": run.deleted,
        "webhooks": {"events": run.events, "delivered": run.delivered, "dropped": run.dropped},
    }
