"""Serve Extend's endpoints for runs and batches, with authorization, rate limits and faults for every endpoint."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everyrun.emulator import render
from everyrun.emulator.admin import admin_routes
from everyrun.emulator.engine import Engine
from everyrun.emulator.listing import in_all, in_batch, list_runs
from everyrun.emulator.rate_limits import RateLimits
from everyrun.emulator.resources import resource_routes
from everyrun.emulator.responses import json_body, json_response
from everyrun.emulator.runs import Run
from everyrun.emulator.validate import (
    ApiProblem,
    check_secrets,
    clean_metadata,
    invalid,
    read_file,
    read_inputs,
    read_package,
    read_priority,
    read_reference,
)
from everyrun.emulator.webhook_api import webhook_routes

_encode = msgspec.json.encode
Handler = Callable[[Request], Awaitable[Any]]


class NoAnswer(Exception):  # noqa: N818
    """Raised to leave a call without an answer: the connection stays open until the caller gives up."""


async def _not_found(request: Request, _error: Exception) -> Response:
    return json_response(404, ApiProblem(404, "NOT_FOUND", f"there is no {request.method} {request.url.path}"))


async def _server_error(_request: Request, _error: Exception) -> Response:
    return json_response(500, ApiProblem(500, "INTERNAL_ERROR", "something went wrong"))


class Api:
    """Extend's API, backed by an engine."""

    def __init__(self, engine: Engine, api_key: str, rate: float) -> None:
        self._engine = engine
        self._key = f"Bearer {api_key}".encode()
        self._limits = RateLimits(rate)

    def asgi(self) -> Starlette:
        """Return the ASGI application."""
        extend = [
            ("POST", "/workflow_runs/batch", self.create_batch),
            ("POST", "/workflow_runs", self.create_run),
            ("GET", "/workflow_runs", self.list),
            ("GET", "/workflow_runs/{id}", self.retrieve),
            ("POST", "/workflow_runs/{id}", self.update),
            ("POST", "/workflow_runs/{id}/cancel", self.cancel),
            ("DELETE", "/workflow_runs/{id}", self.delete),
            *resource_routes(self._engine),
            *webhook_routes(self._engine.webhooks, self._engine.store, self._engine.workflow_id),
        ]
        routes = [Route(path, self._guarded(handler), methods=[method]) for method, path, handler in extend]
        routes += admin_routes(self._engine)
        problems = {404: _not_found, 405: _not_found, 500: _server_error}
        return Starlette(routes=routes, exception_handlers=problems)

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            response = await respond(request)
            # All of Extend has the same clock, so the fault "skew" also shifts the Date header.
            moment = time.time() + self._engine.dice.clock_offset
            response.headers["date"] = formatdate(moment, usegmt=True)
            return response

        async def respond(request: Request) -> Response:
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
                return json_response(200, await handler(request))
            except ApiProblem as problem:
                if problem.status >= 429:
                    self._engine.refused[str(problem.status)] = self._engine.refused.get(str(problem.status), 0) + 1
                return json_response(problem.status, problem, problem.headers)
            except NoAnswer:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                return Response(status_code=504)

        return guarded

    def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._key):
            raise ApiProblem(401, "UNAUTHORIZED", "missing or invalid API key")
        # API keys created after 2025-04-21 require this header (docs.extend.ai, api-reference/api-versioning).
        if request.headers.get("x-extend-api-version") != "2026-02-09":
            raise invalid("x-extend-api-version: must be 2026-02-09")

    def _fault(self, category: str, number: str) -> Response | None:
        strikes = self._engine.dice.strikes
        limited = {"run": "submit_429", "get": "get_429", "write": "write_429"}.get(category)
        broken = {"run": "submit_5xx", "get": "get_5xx", "write": "write_5xx"}.get(category)
        if limited and strikes(limited, number):
            raise ApiProblem(429, "RATE_LIMIT_EXCEEDED", "too many requests", {"retry-after": "1"})
        if broken and strikes(broken, number):
            status = 503 if category == "run" else 500
            raise ApiProblem(status, "INTERNAL_ERROR", "something went wrong")
        if category in ("run", "get") and strikes("garbage", number):
            return Response(b"<html>be right back</html>", 200, media_type="text/html")
        return None

    async def create_batch(self, request: Request) -> Any:
        """Answer POST /workflow_runs/batch."""
        body = await json_body(request)
        workflow_id, version = read_reference(body)
        inputs = read_inputs(body, self._engine.files.name_of)
        priority = read_priority(body.get("priority"), 90)
        version = self._engine.resolve_version(workflow_id, version)
        ordinal = f"batch/{len(self._engine.by_batch)}"
        batch_id = await self._engine.create_batch(workflow_id, version, priority, inputs)
        if self._engine.dice.strikes("accept_then_timeout", ordinal):
            raise NoAnswer
        self._engine.mark_answered(batch_id)
        return {"batchId": batch_id}

    async def create_run(self, request: Request) -> Any:
        """Answer POST /workflow_runs, with a file or a package of files."""
        body = await json_body(request)
        workflow_id, version = read_reference(body)
        read_priority(body.get("priority"), 50)
        check_secrets("secrets", body.get("secrets"))
        if ("file" in body) == ("package" in body):
            raise invalid("exactly one of file, package")
        if "package" in body:
            file = read_package(body["package"], self._engine.files.name_of)
        else:
            file = read_file("file", body["file"], self._engine.files.name_of)
        metadata = clean_metadata("metadata", body.get("metadata"))
        version = self._engine.resolve_version(workflow_id, version)
        run = await self._engine.create_run(workflow_id, version, _encode(file), _encode(metadata))
        return self._rendered(run)

    def _rendered(self, run: Run) -> dict[str, Any]:
        return render.run(run.by_clock(self._engine.dice.clock_offset), self._engine.workflow_made_at)

    async def list(self, request: Request) -> Any:
        """Answer GET /workflow_runs. The list for an unknown batchId is empty; Extend does not document that case."""
        query = request.query_params
        if "batchId" in query:
            source = in_batch(self._engine.by_batch.get(query["batchId"], []))
        else:
            source = in_all(self._engine.runs, self._engine.timeline)
        return list_runs(source, query, self._engine.workflow_made_at, time.time(), self._engine.dice.clock_offset)

    async def retrieve(self, request: Request) -> Any:
        """Answer GET /workflow_runs/{id}."""
        return self._rendered(self._engine.find(request.path_params["id"]))

    async def update(self, request: Request) -> Any:
        """Answer POST /workflow_runs/{id}: merge new metadata into the run's. A name is checked, but not stored."""
        run = self._engine.find(request.path_params["id"])
        body = await json_body(request)
        if not isinstance(body, dict):
            raise invalid("the body must be an object")
        if not isinstance(body.get("name", ""), str):
            raise invalid("name: must be a string")
        # Metadata are merged key by key; the new value wins (SDK 1.20.0, workflow_runs/client.py update).
        merged = {**msgspec.json.decode(run.metadata), **clean_metadata("metadata", body.get("metadata"))}
        await self._engine.update(run, clean_metadata("metadata", merged))
        return self._rendered(run)

    async def cancel(self, request: Request) -> Any:
        """Answer POST /workflow_runs/{id}/cancel."""
        run = self._engine.find(request.path_params["id"])
        await self._engine.cancel(run)
        return self._rendered(run)

    async def delete(self, request: Request) -> Any:
        """Answer DELETE /workflow_runs/{id}."""
        run = self._engine.find(request.path_params["id"])
        await self._engine.delete(run)
        return {"id": run.id}
