"""What each answer to a batch POST means, and the lack of one."""

from __future__ import annotations

import httpx
import pytest

from everyrun.submission.classify import (
    Blocked,
    InDoubt,
    Rejected,
    Returned,
    Taken,
    Unclear,
    classify_failure,
    classify_response,
)

ERROR = b'{"code":"SOME_CODE","message":"some words","retryable":false}'


def answered(status: int, body: bytes = ERROR, **headers: str) -> object:
    return classify_response(httpx.Response(status, content=body, headers=headers))


def test_taken_only_with_a_batch_id() -> None:
    assert answered(200, b'{"batchId":"batch_1"}') == Taken("batch_1")
    assert answered(202, b'{"batchId":"batch_1","more":1}') == Taken("batch_1")
    for body in (b"{}", b"[]", b'{"batchId":null}', b'{"batchId":""}', b'{"batchId":7}', b'{"batchId":"a\\u0000"}'):
        assert isinstance(answered(200, body), Unclear)
    assert isinstance(answered(200, b"<html>"), InDoubt)


@pytest.mark.parametrize("status", [400, 404, 405, 410, 413, 415, 422])
def test_refused_for_good(status: int) -> None:
    assert answered(status) == Rejected(status, "SOME_CODE", "some words")


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_person_must_see_to_it(status: int) -> None:
    assert isinstance(answered(status), Blocked)


def test_not_now() -> None:
    limited = answered(429, **{"retry-after": "2.5"})
    assert isinstance(limited, Returned)
    assert (limited.wait, limited.limited) == (2.5, True)


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 503, 504, 599, 302])
def test_it_may_have_been_taken(status: int) -> None:
    assert isinstance(answered(status, b"oops"), InDoubt)


@pytest.mark.parametrize("error", [httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")])
def test_no_byte_was_sent(error: httpx.HTTPError) -> None:
    assert isinstance(classify_failure(error), Returned)


@pytest.mark.parametrize(
    "error",
    [httpx.ReadTimeout("x"), httpx.WriteTimeout("x"), httpx.ReadError("x"), httpx.WriteError("x"),
     httpx.RemoteProtocolError("x")],
)  # fmt: skip
def test_some_of_it_may_have_arrived(error: httpx.HTTPError) -> None:
    assert isinstance(classify_failure(error), InDoubt)
