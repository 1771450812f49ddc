from __future__ import annotations

import asyncio

import httpx
import pytest

from everyrun.extend.budget import GET, RUN, WRITE
from everyrun.extend.client import Extend
from everyrun.extend.forward import (
    Bucket,
    Forwarder,
    KeyRefusedError,
    NotForwardableError,
    OutcomeUnknownError,
    TooManyRequestsError,
    UnreachableError,
    category_of,
    returned_headers,
)
from everyrun.settings import Settings

SETTINGS = Settings(
    extend_base_url="https://extend.example", EXTEND_API_KEY="sk_own", requests_per_second=1000, call_timeout=5
)


class Sent:
    """A transport that keeps the requests and answers each with ``answer``, or raises it."""

    def __init__(self, answer: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def forwarder(answer: httpx.Response | Exception, settings: Settings = SETTINGS) -> tuple[Forwarder, Sent, Extend]:
    sent = Sent(answer)
    extend = Extend(settings)
    return Forwarder(settings, extend, httpx.MockTransport(sent)), sent, extend


@pytest.mark.parametrize(
    ("method", "path", "category"),
    [
        ("GET", "/workflow_runs", GET),
        ("HEAD", "/files/file_1", GET),
        ("POST", "/workflow_runs", RUN),
        ("POST", "/extract_runs", RUN),
        ("POST", "/workflow_runs/batch", RUN),
        ("POST", "/workflow_runs/workflow_run_1", WRITE),
        ("POST", "/workflow_runs/workflow_run_1/cancel", WRITE),
        ("DELETE", "/workflow_runs/workflow_run_1", WRITE),
        ("POST", "/files/upload", WRITE),
    ],
)
def test_a_request_counts_in_the_category_of_extend(method: str, path: str, category: str) -> None:
    assert category_of(method, path) == category


def test_a_bucket_holds_one_second_of_requests() -> None:
    time = [0.0]
    bucket = Bucket(4, lambda: time[0])
    assert [bucket.take() for _ in range(5)] == [True] * 4 + [False]
    time[0] += 0.25
    assert [bucket.take() for _ in range(2)] == [True, False]
    time[0] += 100
    assert [bucket.take() for _ in range(5)] == [True] * 4 + [False]


async def test_a_forwarded_request_has_everyruns_key_and_no_other_headers() -> None:
    one, sent, extend = forwarder(
        httpx.Response(200, content=b"ok", headers={"x-extend-request-id": "r", "set-cookie": "a"})
    )
    given = {"authorization": "Bearer ert_1", "cookie": "a=b", "x-extend-api-version": "2025-04-21", "host": "me"}
    response = await one.send("GET", "/workflows", "a=b%20c", given)
    (request,) = sent.requests
    assert str(request.url) == "https://extend.example/workflows?a=b%20c"
    assert request.headers["authorization"] == "Bearer sk_own"
    assert request.headers["x-extend-api-version"] == "2025-04-21"
    assert "cookie" not in request.headers
    assert await response.aread() == b"ok"
    assert returned_headers(response)["x-extend-request-id"] == "r"
    assert "set-cookie" not in returned_headers(response)
    assert extend.sent[GET] == 1


@pytest.mark.parametrize(
    "path", ["/../x", "/a/../b", "//host/x", "/a%2e%2e/b", "/a\\b", "", "/", "/.", "/a?b", "http://x/"]
)
async def test_a_path_that_could_lead_elsewhere_is_not_forwarded(path: str) -> None:
    one, sent, _ = forwarder(httpx.Response(200))
    with pytest.raises(NotForwardableError):
        await one.send("GET", path)
    assert sent.requests == []


async def test_callers_get_half_of_the_rate() -> None:
    one, sent, _ = forwarder(httpx.Response(200), SETTINGS.model_copy(update={"requests_per_second": 8}))
    outcomes = await asyncio.gather(*(one.send("GET", "/workflows") for _ in range(8)), return_exceptions=True)
    assert [isinstance(outcome, TooManyRequestsError) for outcome in outcomes] == [False] * 4 + [True] * 4
    await one.send("POST", "/workflow_runs")
    assert len(sent.requests) == 5


async def test_a_lost_answer_is_unknown_only_if_the_request_may_have_had_an_effect() -> None:
    lost, _, _ = forwarder(httpx.ReadTimeout("late"))
    with pytest.raises(UnreachableError):
        await lost.send("GET", "/workflows")
    with pytest.raises(OutcomeUnknownError):
        await lost.send("POST", "/workflow_runs")
    away, _, _ = forwarder(httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError):
        await away.send("POST", "/workflow_runs")


async def test_a_refusal_of_everyruns_own_key_is_not_the_callers_fault() -> None:
    one, _, _ = forwarder(httpx.Response(401))
    with pytest.raises(KeyRefusedError):
        await one.send("GET", "/workflows")


async def test_a_429_pauses_the_category_for_everybody() -> None:
    one, _, extend = forwarder(httpx.Response(429, headers={"retry-after": "7"}))
    paused: list[tuple[str, float]] = []

    async def pause(category: str, seconds: float) -> None:
        paused.append((category, seconds))

    extend.pause = pause  # type: ignore[method-assign]
    assert (await one.send("GET", "/workflows")).status_code == 429
    assert paused == [(GET, 7.0)]
