"""The HTTP side: Extend's endpoints, the signed links, and what a person would do in the dashboard."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from everyrun.emulator import render
from everyrun.emulator.engine import Engine
from everyrun.emulator.limits import Limits
from everyrun.emulator.listing import in_all, in_batch, list_runs
from everyrun.emulator.runs import FAILURES, FINAL, Run
from everyrun.emulator.validate import (
    ApiProblem,
    check_file,
    check_inputs,
    check_priority,
    check_reference,
    clean_metadata,
    invalid,
)
from everyrun.emulator.webhook_api import webhook_routes

_encode = msgspec.json.encode
Handler = Callable[[Request], Awaitable[Any]]


class NoAnswer(Exception):  # noqa: N818
    """The caller is to hear nothing: the connection is held until it gives up."""


async def json_body(request: Request) -> Any:
    """The request's JSON. Raises ApiProblem."""
    try:
        return msgspec.json.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {error}") from None


def answer(status: int, body: Any, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer with a request id (read by Extend's CLI from x-extend-request-id)."""
    request_id = f"req_{secrets.token_hex(8)}"
    if isinstance(body, ApiProblem):
        problem = {"code": body.code, "message": body.message, "retryable": body.status in (429, 500, 503)}
        body = {**problem, "requestId": request_id}
    return Response(
        _encode(body), status, {"x-extend-request-id": request_id, **(headers or {})}, media_type="application/json"
    )


class Api:
    """Extend's API over an engine."""

    def __init__(self, engine: Engine, api_key: str, rate: float) -> None:
        self._engine = engine
        self._key = f"Bearer {api_key}".encode()
        self._limits = Limits(rate)

    def asgi(self) -> Starlette:
        """The application."""
        extend = [
            ("POST", "/workflow_runs/batch", self.create_batch),
            ("POST", "/workflow_runs", self.create_run),
            ("GET", "/workflow_runs", self.list),
            ("GET", "/workflow_runs/{id}", self.retrieve),
            ("POST", "/workflow_runs/{id}", self.update),
            ("POST", "/workflow_runs/{id}/cancel", self.cancel),
            ("DELETE", "/workflow_runs/{id}", self.delete),
            ("POST", "/files/upload", self.upload),
            *webhook_routes(self._engine.webhooks, self._engine.store, self._engine.workflow_id),
        ]
        routes = [Route(path, self._guarded(handler), methods=[method]) for method, path, handler in extend]
        routes += [
            Route("/_signed/{token}", self.signed),
            Route("/_emulator/truth", self.truth),
            Route("/_emulator/stats", self.stats),
            Route("/_emulator/batches", self.batches),
            Route("/_emulator/runs/{id}", self.act, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            category = "get" if request.method == "GET" else "write"
            if handler in (self.create_batch, self.create_run):
                category = "run"
            number = f"{category}/{self._engine.requests[category]}"
            try:
                self._authorize(request)
                self._engine.requests[category] += 1
                if pause := self._engine.dice.seconds("slow", number):
                    await asyncio.sleep(pause)
                if fault := self._fault(category, number):
                    return fault
                self._limits.take(category)
                return answer(200, await handler(request))
            except ApiProblem as problem:
                if problem.status >= 429:
                    self._engine.refused[str(problem.status)] = self._engine.refused.get(str(problem.status), 0) + 1
                return answer(problem.status, problem, problem.headers)
            except NoAnswer:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                return Response(status_code=504)

        return guarded

    def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._key):
            raise ApiProblem(401, "UNAUTHORIZED", "missing or invalid API key")
        # Keys made after 2025-04-21 need the header (docs.extend.ai, api-reference/api-versioning).
        if request.headers.get("x-extend-api-version") != "2026-02-09":
            raise invalid("x-extend-api-version: must be 2026-02-09")

    def _fault(self, category: str, number: str) -> Response | None:
        strikes = self._engine.dice.strikes
        limited = {"run": "submit_429", "get": "get_429"}.get(category)
        broken = {"run": "submit_5xx", "get": "get_5xx"}.get(category)
        if limited and strikes(limited, number):
            raise ApiProblem(429, "RATE_LIMIT_EXCEEDED", "too many requests", {"retry-after": "1"})
        if broken and strikes(broken, number):
            status = 503 if category == "run" else 500
            raise ApiProblem(status, "INTERNAL_ERROR", "something went wrong")
        if category in ("run", "get") and strikes("garbage", number):
            return Response(b"<html>be right back</html>", 200, media_type="text/html")
        return None

    async def create_batch(self, request: Request) -> Any:
        """POST /workflow_runs/batch."""
        body = await json_body(request)
        workflow_id, version = check_reference(body)
        inputs = check_inputs(body, set(self._engine.files))
        priority = check_priority(body.get("priority"), 90)
        version = self._engine.resolve_version(workflow_id, version)
        ordinal = f"batch/{len(self._engine.by_batch)}"
        batch_id = await self._engine.create_batch(workflow_id, version, priority, inputs)
        if self._engine.dice.strikes("accept_then_timeout", ordinal):
            raise NoAnswer
        self._engine.answered(batch_id)
        return {"batchId": batch_id}

    async def create_run(self, request: Request) -> Any:
        """POST /workflow_runs, with a single file."""
        body = await json_body(request)
        workflow_id, version = check_reference(body)
        check_priority(body.get("priority"), 50)
        file = check_file("file", body.get("file"), set(self._engine.files))
        metadata = clean_metadata("metadata", body.get("metadata"))
        version = self._engine.resolve_version(workflow_id, version)
        run = await self._engine.create_run(workflow_id, version, _encode(file), _encode(metadata))
        return self._shown(run)

    def _shown(self, run: Any) -> dict[str, Any]:
        return render.run(run, self._engine.born)

    async def list(self, request: Request) -> Any:
        """GET /workflow_runs. An unknown batchId gives an empty list (not documented)."""
        query = request.query_params
        if "batchId" in query:
            source = in_batch(self._engine.by_batch.get(query["batchId"], []))
        else:
            source = in_all(self._engine.runs, self._engine.timeline)
        return list_runs(source, query, self._engine.born, time.time())

    async def retrieve(self, request: Request) -> Any:
        """GET /workflow_runs/{id}."""
        return self._shown(self._engine.find(request.path_params["id"]))

    async def update(self, request: Request) -> Any:
        """POST /workflow_runs/{id}: name and metadata."""
        run = self._engine.find(request.path_params["id"])
        body = await json_body(request)
        if not isinstance(body, dict):
            raise invalid("the body must be an object")
        if not isinstance(body.get("name", ""), str):
            raise invalid("name: must be a string")
        # Key by key; the incoming wins (SDK 1.20.0, workflow_runs/client.py update).
        merged = {**msgspec.json.decode(run.metadata), **clean_metadata("metadata", body.get("metadata"))}
        await self._engine.update(run, clean_metadata("metadata", merged))
        return self._shown(run)

    async def cancel(self, request: Request) -> Any:
        """POST /workflow_runs/{id}/cancel."""
        run = self._engine.find(request.path_params["id"])
        await self._engine.cancel(run)
        return self._shown(run)

    async def delete(self, request: Request) -> Any:
        """DELETE /workflow_runs/{id}."""
        run = self._engine.find(request.path_params["id"])
        await self._engine.delete(run)
        return {"id": run.id}

    async def upload(self, request: Request) -> Any:
        """POST /files/upload: the content is counted, not kept."""
        form = await request.form()
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise invalid("file: is required")
        now = render.time(time.time())
        identifier = f"file_{secrets.token_hex(10)}"
        summary = {
            "object": "file",
            "id": identifier,
            "name": file.filename or "file",
            "type": None,
            "presignedUrl": None,
            "parentFileId": None,
            "contents": None,
            "metadata": {"pageCount": 1},
            "createdAt": now,
            "updatedAt": now,
        }
        self._engine.files[identifier] = summary
        await self._engine.store.now(self._engine.store.put("file", identifier, summary))
        return summary

    async def signed(self, request: Request) -> Response:
        """A payload behind a signed link, without auth; 403 where the link is not good, as storage services answer."""
        payload = self._engine.webhooks.open_link(request.path_params["token"], self._engine.runs)
        if payload is None:
            return Response(b"<Error><Code>AccessDenied</Code></Error>", 403, media_type="application/xml")
        return Response(payload, 200, media_type="application/json")

    async def act(self, request: Request) -> Response:
        """POST /_emulator/runs/{id} with {"action": ...}."""
        try:
            body = await json_body(request)
            if not isinstance(body, dict):
                raise invalid("the body must be an object")
            run = await self._engine.act(request.path_params["id"], body.get("action"))
        except ApiProblem as problem:
            return answer(problem.status, problem)
        return answer(200, self._shown(run))

    async def truth(self, _request: Request) -> Response:
        """GET /_emulator/truth: NDJSON, a line a run, in the order they were made."""

        async def lines() -> AsyncIterator[bytes]:
            for start in range(0, len(self._engine.runs), 500):
                yield b"".join(_encode(truth_line(run)) + b"\n" for run in self._engine.runs[start : start + 500])
                await asyncio.sleep(0)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def stats(self, _request: Request) -> Response:
        """GET /_emulator/stats: counts of everything."""
        engine = self._engine
        open_runs = sum(run.status not in FINAL for run in engine.runs)
        return answer(
            200,
            {
                "requests": engine.requests,
                "refused": engine.refused,
                "batches": len(engine.by_batch),
                "runs": len(engine.runs),
                "open_runs": open_runs,
                "webhooks": engine.webhooks.counts,
            },
        )

    async def batches(self, _request: Request) -> Response:
        """GET /_emulator/batches: NDJSON, a line a batch."""
        rows = [
            {"batch_id": i, "runs": n, "accepted_at": at, "answered": bool(told)}
            for i, n, at, told in await self._engine.store.batches()
        ]
        return Response(b"".join(_encode(row) + b"\n" for row in rows), media_type="application/x-ndjson")


def truth_line(run: Run) -> dict[str, Any]:
    """What really happened to a run."""
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
