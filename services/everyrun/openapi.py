"""Describe the responses of our HTTP APIs in their OpenAPI documents: the type of each success, and every error.

A route declares its own responses with the decorator ``@answers(Type, {404: "..."})``, which stands below the decorator
with the route's path. This module adds the responses that any route can have (401, 403, 503, 504), and those of routes
with parameters or a body (400, 413, 422). All this is only documentation, and does nothing while a request is handled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from msgspec import UNSET, Meta, UnsetType

REF = "#/components/schemas/{name}"
_MARK = "__answers__"
_BODIES = ("post", "put", "patch")
_Route = TypeVar("_Route", bound=Callable[..., Any])


class Problem(msgspec.Struct, frozen=True):
    """The body of an error response."""

    code: Annotated[str, Meta(description="What is wrong, for programs. A status can have several codes.")]
    message: Annotated[str, Meta(description="What is wrong and what to do, for people. The wording may change.")]
    field: Annotated[
        str | UnsetType,
        Meta(
            description="The parameter or the field of the body that is wrong. Absent if the problem is of another "
            "kind."
        ),
    ] = UNSET


class Forbidden(Problem, frozen=True, kw_only=True):
    """The body of a 403 response: the token is valid, but lacks the scope for this call."""

    scope: Annotated[str, Meta(description="The scope that the token lacks: submit, read or operate.")]


class Answers(msgspec.Struct, frozen=True):
    """The responses that a route declares: see :func:`answers`."""

    success: Any
    errors: Mapping[int, str | tuple[str, Any]]
    also: Sequence[Any] = ()
    streams: Sequence[str] = ()
    tagged: bool = False


def answers(
    success: Any,
    errors: Mapping[int, str | tuple[str, Any]] | None = None,
    *,
    also: Sequence[Any] = (),
    streams: Sequence[str] = (),
    tagged: bool = False,
) -> Callable[[_Route], _Route]:
    """Declare the responses of the decorated route: the msgspec type of a success, and its own errors by HTTP status.

    Each error is described by a sentence that begins with the error's code, or by a pair of such a sentence and the
    type of the response's body. ``also`` lists types to which :func:`any_of` refers by name, so that the document
    defines them. A success that is a stream instead of JSON has no type, but the media types ``streams``.
    ``tagged`` if the route has an ETag, and can answer 304.
    """

    def mark(route: _Route) -> _Route:
        setattr(route, _MARK, Answers(success, errors or {}, also, streams, tagged))
        return route

    return mark


def answers_of(route: APIRoute) -> Answers | None:
    """Return the responses that a route declares, or None if it declares none."""
    found: Answers | None = getattr(route.endpoint, _MARK, None)
    return found


#: Errors that any route can answer.
_ALWAYS: Mapping[int, str | tuple[str, Any]] = {
    401: "UNAUTHORIZED: the token is missing, unknown, expired or revoked. The response is the same for each.",
    403: ("FORBIDDEN: the token lacks a scope; `scope` names it.", Forbidden),
    503: "UNAVAILABLE: the database or Kafka does not answer, or the service is catching up with the log. BUSY: too "
    "many such calls are in progress. Retry after the number of seconds in Retry-After.",
    504: "TOO_SLOW: the database took too long for this call. Ask for less, or retry later.",
}
_INVALID: Mapping[int, str] = {422: "INVALID_REQUEST: a parameter or a field of the body is wrong; `field` names it."}
_WITH_BODY: Mapping[int, str] = {
    400: "INCOMPLETE: the body ended early or came too slowly. UNREADABLE: it could not be read at all.",
    413: "TOO_LARGE: the body is larger than the limit in the message.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an application, with the responses that its routes declare."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    types: list[Any] = [Problem]
    operations = [
        (route, found["paths"][route.path_format][method.lower()], method.lower())
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    ]
    declared = []
    for route, operation, method in operations:
        said = answers_of(route)
        errors: dict[int, str | tuple[str, Any]] = dict(_ALWAYS)
        if operation.get("parameters") or operation.get("requestBody"):
            errors |= _INVALID
        if method in _BODIES and operation.get("requestBody"):
            errors |= _WITH_BODY
        errors |= said.errors if said is not None else {}
        success = None if said is None else said.success
        types += [one for one in (success, *(said.also if said is not None else ())) if one is not None]
        types += [error[1] for error in errors.values() if isinstance(error, tuple)]
        declared.append((route, operation, success, errors, () if said is None else said.streams))
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(unique, ref_template=REF)
    schema_of = dict(zip(unique, schemas, strict=True))
    for route, operation, success, errors, streams in declared:
        status = str(route.status_code or 200)
        body = {"type": "object"} if success is None else schema_of[success]
        operation["responses"] = {status: _response(HTTPStatus(int(status)).phrase, body)}
        if (said := answers_of(route)) is not None and said.tagged:
            operation["responses"]["304"] = {"description": "The answer has the ETag that If-None-Match names."}
        if streams:
            content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in streams}
            operation["responses"][status]["content"] = content
        for number, error in sorted(errors.items()):
            text, kind = error if isinstance(error, tuple) else (error, Problem)
            operation["responses"][str(number)] = _response(text, schema_of[kind])
    known = found.setdefault("components", {}).setdefault("schemas", {})
    for theirs in ("HTTPValidationError", "ValidationError"):
        known.pop(theirs, None)
    known |= components
    found["components"]["schemas"] = dict(sorted(known.items()))
    cleaned: dict[str, Any] = _clean_descriptions(found)
    return cleaned


def _clean_descriptions(node: Any) -> Any:
    """Remove the indentation from descriptions that are docstrings. Python itself does so only from 3.13 on."""
    if isinstance(node, dict):
        return {
            key: inspect.cleandoc(value)
            if key == "description" and isinstance(value, str)
            else _clean_descriptions(value)
            for key, value in node.items()
        }
    return [_clean_descriptions(item) for item in node] if isinstance(node, list) else node


def _response(text: str, schema: Any) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def any_of(*types: type) -> Meta:
    """Describe a value that is one of several structs. The route must list them in ``answers(also=...)``."""
    return Meta(extra_json_schema={"anyOf": [{"$ref": REF.format(name=one.__name__)} for one in types]})
