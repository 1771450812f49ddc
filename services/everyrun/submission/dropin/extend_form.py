"""The form of Extend's API: error bodies, ids and the version header (SDK 1.20.0, types/api_error.py). Pure.

Only ``problem_answer`` is not pure: it draws a random request id.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from everyrun.extend.client import API_VERSION

#: Extend's code for a status (docs.extend.ai, api-reference/error-handling). Extend does not document the others.
_CODES = {400: "INVALID_REQUEST", 401: "UNAUTHORIZED", 404: "NOT_FOUND", 429: "RATE_LIMIT_EXCEEDED"}
_RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})
#: The batchId that Everyrun gives to a batch ends with the characters of its submission's id.
_BATCH, _SUBMISSION = "batch_", "sub_"
_OWN_ID = re.compile(r"batch_([0-9a-hjkmnp-tv-z]{26})").fullmatch
#: An error as the queue stores it: status, code and message.
_REFUSAL = re.compile(r"(4\d\d) (\S+): (.*)", re.DOTALL).fullmatch


class Problem(Exception):  # noqa: N818
    """An error response in Extend's form. ``code`` is Extend's code for the status if none is given."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or _CODES.get(status, "INTERNAL_ERROR" if status >= 500 else "INVALID_REQUEST")
        self.message = message
        self.headers = dict(headers or {})


class Answer(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: dict[str, str]


class ReceivedProblem(Exception):  # noqa: N818
    """Extend's own error, which the caller gets as it was received."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"Extend answered {answer.status}")
        self.answer = answer


def new_request_id() -> str:
    """Return a new request id."""
    return f"req_{secrets.token_hex(8)}"


def problem_answer(problem: Problem) -> Answer:
    """Return the response for an error. Its request id is in the body and in x-extend-request-id."""
    request_id = new_request_id()
    body = {
        "code": problem.code,
        "message": problem.message,
        "retryable": problem.status in _RETRYABLE,
        "requestId": request_id,
    }
    return Answer(problem.status, msgspec.json.encode(body), {**problem.headers, "x-extend-request-id": request_id})


def json_answer(value: object) -> Answer:
    """Return a response with status 200 and this value as JSON."""
    return Answer(200, msgspec.json.encode(value), {"x-extend-request-id": new_request_id()})


def check_version(headers: Mapping[str, str]) -> None:
    """Raise Problem if the request does not name the version of Extend's API that Everyrun speaks."""
    if headers.get("x-extend-api-version") != API_VERSION:
        raise Problem(400, f"x-extend-api-version: must be {API_VERSION}")


def own_batch_id(submission_id: str) -> str:
    """Return the batchId that Everyrun gives to a submission."""
    return _BATCH + submission_id.removeprefix(_SUBMISSION)


def submission_of(batch_id: str) -> str | None:
    """Return the id of the submission to which Everyrun would give this batchId; None if there can be none."""
    match = _OWN_ID(batch_id)
    return None if match is None else _SUBMISSION + match[1]


def refusal(reason: str | None) -> Problem:
    """Return Extend's answer to a batch that it refused, from the reason that the queue has stored."""
    match = _REFUSAL(reason or "")
    if match is None:
        return Problem(400, reason or "the batch was refused")
    return Problem(int(match[1]), match[3], match[2])
