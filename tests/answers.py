"""Compare real answers of the APIs with their OpenAPI documents."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import jsonschema
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Match

from everyrun.openapi import answers_of


def _strict(document: dict[str, Any]) -> dict[str, Any]:
    """Return the types of the document, changed to allow no field that they do not name."""
    found = copy.deepcopy(document["components"]["schemas"])
    for schema in found.values():
        if "properties" in schema and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return found


def operation_of(app: FastAPI, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
    """Return the path of the document that a request went to and its operation, or None if it has no such path."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    document = app.openapi()
    for route in app.routes:
        # A route of a test declares nothing; those of the services do, see tests/unit/test_schemas.py.
        if not isinstance(route, APIRoute) or answers_of(route) is None:
            continue
        if route.matches(scope)[0] is Match.FULL:
            return route.path_format, document["paths"][route.path_format][method.lower()]
    return None


def check(app: FastAPI, request: httpx.Request, status: int, headers: httpx.Headers, content: bytes) -> str | None:
    """Check that the document allows an answer; return the path that it belongs to, or None if it belongs to none.

    Raises AssertionError.
    """
    found = operation_of(app, request.method, request.url.path)
    if found is None:
        return None
    path, operation = found
    where = f"{request.method} {path} answered {status}"
    assert str(status) in operation["responses"], f"{where}, which its document does not declare: {content[:200]!r}"
    declared = operation["responses"][str(status)].get("content")
    if declared is None:
        assert not content, f"{where} with a body"
        return path
    kind = headers.get("content-type", "").partition(";")[0]
    assert kind in declared, f"{where} as {kind}"
    if kind != "application/json":
        return path
    schema = {**declared[kind]["schema"], "components": {"schemas": _strict(app.openapi())}}
    try:
        jsonschema.validate(httpx.Response(status, content=content).json(), schema)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"{where}, but differs from its document: {error.message} at {error.json_path}") from None
    return path
