"""The bridge's answers: by signature, size, method, and what the log says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import httpx
import pytest
from aiokafka.errors import KafkaTimeoutError
from prometheus_client import generate_latest

from everyrun.bridge.handler import Handler
from everyrun.extend.signature import sign
from everyrun.log.cloudevents import Record

NOW = 1767225600
SECRET = b"wss_a"
RUN = {"object": "workflow_run", "id": "r", "status": "PROCESSED", "batchId": "b"}
BODY = json.dumps({"eventId": "e", "eventType": "workflow_run.completed", "payload": RUN}).encode()
PATH = "/webhooks/extend"


class Kept:
    def __init__(self) -> None:
        self.records: list[Record] = []

    async def append(self, records: Iterable[Record]) -> None:
        self.records += records


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def append(self, records: Iterable[Record]) -> None:
        raise self.error


class Silent:
    async def append(self, records: Iterable[Record]) -> None:
        await asyncio.Event().wait()


def handler(log, **more) -> Handler:
    return Handler(log, [SECRET, b"wss_b"], clock=lambda: NOW, **more)


def client(app: Handler) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bridge")


def signed(body: bytes, secret: bytes = SECRET, at: int = NOW) -> dict[str, str]:
    stamp = str(at)
    return {
        "x-extend-request-timestamp": stamp,
        "x-extend-request-signature": sign(stamp.encode(), body, secret).decode(),
    }


async def test_a_signed_run_is_taken_and_is_in_the_log_by_then() -> None:
    kept = Kept()
    async with client(handler(kept)) as http:
        for secret in (SECRET, b"wss_b"):
            answer = await http.post(PATH, content=BODY, headers=signed(BODY, secret))
            assert answer.status_code == 200
    assert [record.topic for record in kept.records] == ["runs", "runs"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-extend-request-timestamp": str(NOW)},
        {"x-extend-request-signature": "0" * 64},
        signed(BODY + b" "),
        signed(BODY, b"wss_other"),
        signed(BODY, at=NOW - 301),
        signed(BODY, at=NOW + 61),
        {**signed(BODY), "x-extend-request-signature": "é".encode() * 32},
        {**signed(BODY), "x-extend-request-timestamp": b"\xff"},
    ],
)
async def test_what_is_not_signed_is_told_nothing(headers) -> None:
    kept = Kept()
    async with client(handler(kept)) as http:
        answer = await http.post(PATH, content=BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "UNAUTHORIZED"
    assert not kept.records
    async with client(handler(kept)) as http:
        other = await http.post(PATH, content=b"anything else")
    assert other.content == answer.content


async def test_a_signed_body_of_any_bytes_is_kept_in_quarantine() -> None:
    kept = Kept()
    async with client(handler(kept)) as http:
        answer = await http.post(PATH, content=b"\xff\xfe", headers=signed(b"\xff\xfe"))
    assert answer.status_code == 200
    assert [record.topic for record in kept.records] == ["quarantine"]


async def test_a_body_of_the_largest_size_is_taken_and_one_byte_more_is_not() -> None:
    body = BODY + b" " * (2000 - len(BODY))
    for limit, status in ((2000, 200), (1999, 413)):
        async with client(handler(Kept(), max_bytes=limit)) as http:
            assert (await http.post(PATH, content=body, headers=signed(body))).status_code == status

            async def parts():
                for start in range(0, 2000, 100):
                    yield body[start : start + 100]

            assert (await http.post(PATH, content=parts(), headers=signed(body))).status_code == status


async def test_a_declared_size_over_the_limit_is_refused_before_reading() -> None:
    async def receive():
        raise AssertionError("the body was read")

    sent = []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": PATH, "method": "POST", "headers": [(b"content-length", b"9" * 30)]}
    await handler(Kept())(scope, receive, send)
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("said", [[], [{"type": "http.request", "body": b"{", "more_body": True}]])
async def test_a_body_cut_short_is_a_400(said) -> None:
    messages = iter([*said, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    sent = []

    async def send(message) -> None:
        sent.append(message)

    kept = Kept()
    await handler(kept)({"type": "http", "path": PATH, "method": "POST", "headers": []}, receive, send)
    assert sent[0]["status"] == 400
    assert not kept.records


@pytest.mark.parametrize("log", [Broken(KafkaTimeoutError()), Broken(OSError()), Broken(ValueError()), Silent()])
async def test_no_acknowledgement_is_a_503_and_extend_sends_again(log) -> None:
    async with client(handler(log, acknowledged_within=0.05)) as http:
        answer = await http.post(PATH, content=BODY, headers=signed(BODY))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_other_methods_and_paths() -> None:
    async with client(handler(Kept())) as http:
        assert (await http.get(PATH)).status_code == 405
        assert (await http.put(PATH, content=BODY, headers=signed(BODY))).status_code == 405
        assert (await http.post("/", content=BODY, headers=signed(BODY))).status_code == 404


async def test_outcomes_are_counted() -> None:
    step = json.dumps({"eventType": "workflow_run.step_run.processed", "payload": {}}).encode()
    kept = Kept()
    app = handler(kept)
    async with client(app) as http:
        for body in (BODY, step, b"x"):
            assert (await http.post(PATH, content=body, headers=signed(body))).status_code == 200
        await http.post(PATH, content=b"x")
    text = generate_latest(app.registry).decode()
    for outcome in ("observed", "step", "quarantined", "unauthorized"):
        assert f'everyrun_bridge_webhooks_total{{outcome="{outcome}"}} 1.0' in text
    assert 'everyrun_bridge_webhooks_total{outcome="deferred"} 0.0' in text
    assert len(kept.records) == 2
