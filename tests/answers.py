"""Real answers of our APIs, held against what their OpenAPI documents say."""

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
    """The types of the document, which allow no field that they do not name."""
    found = copy.deepcopy(document["components"]["schemas"])
    for schema in found.values():
        if "properties" in schema and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return found


def operation_of(app: FastAPI, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
    """The path of the document that a request went to, and what the document says of it; None for no route of it."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    document = app.openapi()
    for route in app.routes:
        # A route that a test made for itself declares nothing; ours do, see tests/unit/test_schemas.py.
        if not isinstance(route, APIRoute) or answers_of(route) is None:
            continue
        if route.matches(scope)[0] is Match.FULL:
            return route.path_format, document["paths"][route.path_format][method.lower()]
    return None


def check(app: FastAPI, request: httpx.Request, status: int, headers: httpx.Headers, content: bytes) -> str | None:
    """Raise AssertionError if the answer is none that the document allows; the path that it is of, if it is of one."""
    found = operation_of(app, request.method, request.url.path)
    if found is None:
        return None
    path, operation = found
    where = f"{request.method} {path} answered {status}"
    assert str(status) in operation["responses"], f"{where}, which its document does not name: {content[:200]!r}"
    declared = operation["responses"][str(status)]["content"]
    kind = headers.get("content-type", "").partition(";")[0]
    assert kind in declared, f"{where} as {kind}"
    schema = {**declared[kind]["schema"], "components": {"schemas": _strict(app.openapi())}}
    try:
        jsonschema.validate(httpx.Response(status, content=content).json(), schema)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"{where}, not as its document says: {error.message} at {error.json_path}") from None
    return path
