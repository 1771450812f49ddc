"""The verdict on every kind of answer to a batch call, and on calls without an answer."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx
import msgspec
import pytest

from everyrun.extend.client import clean, read_error, read_problem, retry_after, sent_at
from everyrun.submission.dispatch.classify import (
    MAX_CALLS_WAIT,
    MAX_CHUNK_WAIT,
    Accepted,
    Blocked,
    InDoubt,
    Refused,
    Returned,
    Unclear,
    Verdict,
    calls_wait,
    chunk_wait,
    classify_failure,
    classify_response,
    is_from_extend,
)

#: Answers of others than Extend: a proxy, a firewall, a portal; and an empty answer.
STRANGERS = [
    b"<html><body>nginx</body></html>",
    b"",
    b"no",
    b"{}",
    b"[]",
    b'{"message":"Forbidden"}',
    b'{"code":"BLOCKED","message":"by the firewall"}',
    b'{"code":403,"message":"no","retryable":false}',
    b'{"code":"X","message":null,"retryable":false}',
    b'{"code":"X","message":"no","retryable":"false"}',
    b'{"error":"not found"}',
    b"[" * 100_000,
]
FILES = [{"id": "file_a"}, {"url": "https://files.example/b.pdf"}, {"id": "file_c"}]


def error(message: str = "some words", code: str = "SOME_CODE", *, retryable: bool = False) -> bytes:
    return json.dumps({"code": code, "message": message, "retryable": retryable, "requestId": "req_1"}).encode()


def answered(status: int, body: bytes | None = None, version: str | None = None, **headers: str) -> Verdict:
    content = error() if body is None else body
    return classify_response(httpx.Response(status, content=content, headers=headers), FILES, version)


def test_a_batch_is_accepted_only_with_a_batch_id() -> None:
    assert answered(200, b'{"batchId":"batch_1"}') == Accepted("batch_1")
    assert answered(202, b'{"batchId":"batch_1","more":"\\ud800"}') == Accepted("batch_1")
    bodies = (b"{}", b"[]", b'{"batchId":null}', b'{"batchId":""}', b'{"batchId":7}')
    for body in (*bodies, b'{"batchId":"a\\u0000"}', b'{"batchId":"a\\ud800"}'):
        assert isinstance(answered(200, body), Unclear)
    assert isinstance(answered(200, b"<html>"), InDoubt)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_errors_about_the_inputs_refuse_the_chunk(status: int) -> None:
    assert answered(status) == Refused(status, "SOME_CODE", "some words")
    assert answered(status, error("inputs[2].file.id: no")) == Refused(
        status, "SOME_CODE", "inputs[2].file.id: no", (2,)
    )
    nested = b'{"error":' + error() + b"}"
    assert answered(status, nested) == Refused(status, "SOME_CODE", "some words")


@pytest.mark.parametrize("body", STRANGERS)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 429])
def test_an_answer_that_is_not_extends_refuses_and_pauses_nothing(status: int, body: bytes) -> None:
    verdict = answered(status, body)
    assert isinstance(verdict, Returned)
    assert not verdict.from_extend
    assert str(status) in verdict.reason


@pytest.mark.parametrize("body", [*STRANGERS, error(), error(retryable=True)])
@pytest.mark.parametrize("status", [301, 302, 408, 409, 425, 499, 500, 502, 503, 504, 599])
def test_statuses_that_leave_the_outcome_in_doubt(status: int, body: bytes) -> None:
    assert isinstance(answered(status, body), InDoubt)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 410, 413, 422])
def test_a_retryable_error_returns_the_chunk(status: int) -> None:
    verdict = answered(status, error(retryable=True), **{"retry-after": "7"})
    assert verdict == Returned(f"{status} SOME_CODE: some words", 7.0, from_extend=True)


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (401, "invalid key", "UNAUTHORIZED"),
        (402, "out of credits", "USAGE_BLOCKED"),
        (403, "file_a: no access", "FORBIDDEN"),
        (400, "inputs[0]: out of credits", "USAGE_BLOCKED"),
        (404, "workflow workflow_1 not found", "NOT_FOUND"),
        (404, "version 7 of workflow workflow_1 not found", "NOT_FOUND"),
        (404, "not found", "NOT_FOUND"),
        (400, "workflow.version: must be a string", "INVALID_REQUEST"),
        (400, "The workflow has no deployed version", "INVALID_REQUEST"),
        (422, "nothing is published yet", "INVALID_REQUEST"),
        (400, "x-extend-api-version: must be 2026-02-09", "INVALID_REQUEST"),
        (400, "x-extend-workspace-id is required", "INVALID_REQUEST"),
        (400, "no", "INVALID_WORKFLOW"),
        (405, "not allowed", "SOME_CODE"),
        (410, "gone", "ENDPOINT_REMOVED"),
        (415, "unsupported media type", "SOME_CODE"),
        (418, "a teapot", "SOME_CODE"),
    ],
)
def test_errors_about_the_workflow_or_the_account_block_the_workflow(status: int, message: str, code: str) -> None:
    assert answered(status, error(message, code)) == Blocked(f"{status} {code}: {message}")


@pytest.mark.parametrize(
    ("status", "message", "code", "version", "scope"),
    [
        (404, "version 99 of workflow workflow_1 not found", "NOT_FOUND", "99", "submission"),
        (404, "No such workflow version", "NOT_FOUND", "99", "submission"),
        (400, "workflow.version: must be a string", "INVALID_REQUEST", "99", "submission"),
        (400, "The workflow has no draft", "INVALID_REQUEST", "draft", "submission"),
        # If the submission names no version, or the error is another one, it is about the workflow.
        (404, "version 99 of workflow workflow_1 not found", "NOT_FOUND", None, "workflow"),
        (400, "The workflow has no deployed version", "INVALID_REQUEST", None, "workflow"),
        (404, "workflow workflow_1 not found", "NOT_FOUND", "99", "workflow"),
        (400, "x-extend-api-version: must be 2026-02-09", "INVALID_REQUEST", "99", "workflow"),
        (403, "no permission for this version", "FORBIDDEN", "99", "workflow"),
    ],
)
def test_an_error_about_the_version_blocks_only_the_submission(
    status: int, message: str, code: str, version: str | None, scope: str
) -> None:
    assert answered(status, error(message, code), version) == Blocked(f"{status} {code}: {message}", scope)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "message", "named"),
    [
        (404, "file_c not found", (2,)),
        (404, "the file was not found", ()),
        (404, "file_c is not known to workflow workflow_1", (2,)),
        (400, "Could not create the workflow run: bad file", ()),
        (400, "inputs.1.metadata: too large; inputs/2: no", (1, 2)),
        (400, "inputs[99]: no", ()),
        (400, "file_ab: no", ()),
        (400, "inputs: at most 1000 items", ()),
    ],
)
def test_inputs_named_in_an_error_are_found(status: int, message: str, named: tuple[int, ...]) -> None:
    assert answered(status, error(message)) == Refused(status, "SOME_CODE", message, named)


def test_a_rate_limit_returns_the_chunk_with_its_wait() -> None:
    limited = answered(429, **{"retry-after": "2.5"})
    assert isinstance(limited, Returned)
    assert (limited.wait, limited.rate_limited, limited.from_extend) == (2.5, True, True)
    assert answered(429) == Returned("429 SOME_CODE: some words", None, rate_limited=True, from_extend=True)


@pytest.mark.parametrize("error", [httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")])
def test_a_request_that_was_not_sent_returns_the_chunk(error: httpx.HTTPError) -> None:
    assert isinstance(classify_failure(error), Returned)


@pytest.mark.parametrize(
    "error",
    [httpx.ReadTimeout("x"), httpx.WriteTimeout("x"), httpx.ReadError("x"), httpx.WriteError("x"),
     httpx.RemoteProtocolError("x")],
)  # fmt: skip
def test_a_request_that_may_have_arrived_is_in_doubt(error: httpx.HTTPError) -> None:
    assert isinstance(classify_failure(error), InDoubt)


FAR = format_datetime(datetime(2081, 8, 30, tzinfo=UTC), usegmt=True)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-5", 0.0),
        ("-inf", 0.0),
        ("3601", 3600.0),
        ("315360000", 3600.0),
        ("1e300", 3600.0),
        ("9" * 400, 3600.0),
        ("inf", 3600.0),
        (FAR, 3600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_limited_to_an_hour(header: str | None, wait: float | None) -> None:
    found = retry_after({} if header is None else {"retry-after": header})
    assert found == wait
    assert found is None or math.isfinite(found)


def test_the_date_of_an_answer_is_always_a_time() -> None:
    for text in ("Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359", "nonsense", ""):
        assert sent_at({"date": text}).tzinfo is UTC


@pytest.mark.parametrize("escape", ["\\u0000", "\\ud800", "\\udfff x", "\\udc00\\ud800"])
def test_messages_of_extend_can_be_stored_and_published(escape: str) -> None:
    body = b'{"code":"A%s","message":"b%s","retryable":false}'.replace(b"%s", escape.encode())
    verdict = answered(400, body)
    assert isinstance(verdict, Refused), "it is Extend's word all the same"
    told: list[Any] = [verdict.code, verdict.message, *read_error(body)]
    for stranger in (body[:-1], escape.encode(), b"\x00\xed\xa0\x80\xff"):
        reason = answered(400, stranger)
        assert isinstance(reason, Returned)
        told.append(reason.reason)
    told.append(classify_failure(httpx.RemoteProtocolError("a\x00\ud800")).reason)  # type: ignore[union-attr]
    for text in told:
        assert "\x00" not in text
        assert msgspec.json.decode(msgspec.json.encode(text)) == text


def test_messages_of_extend_are_redacted_and_shortened() -> None:
    found = read_problem(error("see https://files.example/x.pdf?sig=planted " + "x" * 9000, "Y" * 9000))
    assert found is not None
    assert "planted" not in found.message
    assert (len(found.code), len(found.message) <= 2000) == (200, True)
    assert clean("plain ✓ 𝄞") == "plain ✓ 𝄞"


def test_waits_grow_up_to_a_limit() -> None:
    returned = Returned("no", None)
    waits = [chunk_wait(returned, attempt) for attempt in range(1, 40)]
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert waits == sorted(waits)
    assert waits[-1] == MAX_CHUNK_WAIT
    assert chunk_wait(Returned("no", 3600.0), 1) == 3600.0
    assert chunk_wait(Returned("no", None), 10**9) == MAX_CHUNK_WAIT


def test_calls_are_delayed_while_extend_does_not_answer() -> None:
    outcomes: list[Verdict] = [Returned("a proxy"), InDoubt("503"), Returned("no route")]
    for outcome in outcomes:
        assert not is_from_extend(outcome)
        waits = [calls_wait(outcome, n) for n in range(1, 20)]
        assert waits[:4] == [0.0, 1.0, 2.0, 4.0], "one chunk that a firewall dislikes holds up no other"
        assert waits[-1] == MAX_CALLS_WAIT
    for outcome in (Accepted("batch_1"), Refused(400, "X", "no"), Blocked("402"), Returned("later", from_extend=True)):
        assert is_from_extend(outcome)
        assert calls_wait(outcome, 1) == 0.0
    assert calls_wait(Returned("429", 2.5, rate_limited=True, from_extend=True), 1) == 2.5
    assert calls_wait(Returned("429", None, rate_limited=True, from_extend=True), 1) == 1.0
