"""The kinds of errors decide the exit code of a command and the status of an HTTP response."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from everyrun.cli import exits
from everyrun.errors import Conflict, EveryrunError, Invalid, NotFound, Unavailable
from everyrun.http import ApiError, add_error_handlers


class _BusyError(Unavailable):
    code = "BUSY"
    retry_after = 7


class _UnknownError(NotFound):
    def details(self) -> dict[str, str]:
        return {"did_you_mean": "b"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), exits.NOT_FOUND),
        (_UnknownError("x"), exits.NOT_FOUND),
        (Conflict("x"), exits.ERROR),
        (Invalid("x"), exits.ERROR),
        (Unavailable("x"), exits.ERROR),
        (EveryrunError("x"), exits.ERROR),
    ],
)
def test_exit_code_comes_from_the_kind(error: EveryrunError, code: int) -> None:
    assert exits.of(error) == code


def test_caller_chooses_the_exit_code_of_kinds_that_have_none() -> None:
    assert exits.of(Conflict("x"), exits.USAGE) == exits.USAGE
    assert exits.of(NotFound("x"), exits.USAGE) == exits.NOT_FOUND


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (NotFound("gone"), 404, {"code": "NOT_FOUND", "message": "gone"}),
        (_UnknownError("a"), 404, {"code": "NOT_FOUND", "message": "a", "did_you_mean": "b"}),
        (Conflict("twice"), 409, {"code": "CONFLICT", "message": "twice"}),
        (Invalid("bad"), 422, {"code": "INVALID_REQUEST", "message": "bad"}),
        (ApiError(418, "TEAPOT", "no", size=2), 418, {"code": "TEAPOT", "message": "no", "size": 2}),
    ],
)
def test_http_status_comes_from_the_kind(error: EveryrunError, status: int, body: dict[str, object]) -> None:
    response = _response(error)
    assert (response.status_code, response.json()) == (status, body)


def test_unavailable_says_when_to_try_again() -> None:
    response = _response(_BusyError("full"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json() == {"code": "BUSY", "message": "full"}


def test_error_without_a_kind_is_an_internal_error() -> None:
    assert _response(EveryrunError("x")).status_code == 500


def _response(error: EveryrunError):
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    return TestClient(app, raise_server_exceptions=False).get("/")
