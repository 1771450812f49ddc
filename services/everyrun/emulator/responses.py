"""Read the JSON of a request, and make responses in the form of Extend's."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from everyrun.emulator.validate import ApiProblem, invalid


async def json_body(request: Request) -> Any:
    """Return the decoded body of a request. Raises ApiProblem if the body is not JSON."""
    try:
        return msgspec.json.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {error}") from None


def json_response(status: int, body: Any, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response with a request id, which Extend's CLI reads from x-extend-request-id."""
    request_id = f"req_{secrets.token_hex(8)}"
    if isinstance(body, ApiProblem):
        problem = {"code": body.code, "message": body.message, "retryable": body.status in (429, 500, 503)}
        body = {**problem, "requestId": request_id}
    all_headers = {"x-extend-request-id": request_id, **(headers or {})}
    return Response(msgspec.json.encode(body), status, all_headers, media_type="application/json")
