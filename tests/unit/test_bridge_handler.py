"""The bridge's answers depend on signature, size and method, and on the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import httpx
import pytest
from aiokafka.errors import KafkaTimeoutError
from prometheus_client import generate_latest

from everyrun.bridge import handler as module
from everyrun.bridge.handler import Handler
from everyrun.doctor.ask_bridge import self_test
from everyrun.doctor.facts import Answer
from everyrun.doctor.judge_extend import judge_endpoint
from everyrun.doctor.judge_webhook import judge_self_test
from everyrun.extend.client import API_VERSION
from everyrun.extend.signature import sign
from everyrun.health import Health
from everyrun.log.cloudevents import Record
from everyrun.log.observation import SELF_TEST
from everyrun.projection.decode import run_of
from everyrun.projection.rules.merge import merge
from everyrun.serve import http_server, with_health
from tests.conftest import eventually, free_port
from tests.memory_log import MemoryLog
from tests.records import Logged

NOW = 1767225600
SECRET = b"wss_a"
RUN = {"object": "workflow_run", "id": "r", "status": "PROCESSED", "batchId": "b"}
BODY = json.dumps({"eventId": "e", "eventType": "workflow_run.completed", "payload": RUN}).encode()
PATH = "/webhooks/extend"


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


async def test_a_signed_run_is_in_the_log_before_the_answer() -> None:
    kept = MemoryLog()
    async with client(handler(kept)) as http:
        for secret in (SECRET, b"wss_b"):
            answer = await http.post(PATH, content=BODY, headers=signed(BODY, secret))
            assert answer.status_code == 200
    assert [record.topic for record in kept.records] == ["runs", "runs"]


async def test_the_time_of_receipt_is_kept_beside_the_signed_time() -> None:
    """Extend signs whole seconds. As the time of receipt, they could be before the end of the run."""
    moments = [NOW + 0.75, NOW + 2.25]
    link = {"object": "signed_data_url", "data": "https://s/x", "id": "r"}
    deferred = json.dumps({"eventId": "d", "eventType": "workflow_run.completed", "payload": link}).encode()
    for body in (BODY, deferred, b"not understood"):
        kept, clock = MemoryLog(), iter(moments)
        async with client(Handler(kept, [SECRET], clock=lambda clock=clock: next(clock))) as http:
            for _ in moments:
                assert (await http.post(PATH, content=body, headers=signed(body))).status_code == 200
        first, again = (dict(record.headers) for record in kept.records)
        assert (first["ce_time"], again["ce_time"]) == (b"2026-01-01T00:00:00.750Z", b"2026-01-01T00:00:02.250Z")
        assert first["ce_signedtime"] == again["ce_signedtime"] == b"2026-01-01T00:00:00.000Z"
        # Delivered again it is the same event, and all it says is the same.
        assert (first["ce_id"], kept.records[0].value) == (again["ce_id"], kept.records[1].value)


async def test_a_repeated_delivery_changes_nothing_whatever_its_time() -> None:
    kept, clock = MemoryLog(), iter([NOW + 3.5, NOW + 0.25])
    async with client(Handler(kept, [SECRET], clock=lambda: next(clock))) as http:
        for _ in range(2):
            await http.post(PATH, content=BODY, headers=signed(BODY))
    late, early = (run_of(Logged("runs", 0, 0, r.key, r.value, r.headers, 0)) for r in kept.records)
    assert late.order == early.order
    assert merge(late, early) == merge(early, late) == merge(merge(early, late), late) == early


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
async def test_an_unsigned_request_learns_nothing(headers) -> None:
    kept = MemoryLog()
    async with client(handler(kept)) as http:
        answer = await http.post(PATH, content=BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "UNAUTHORIZED"
    assert not kept.records
    async with client(handler(kept)) as http:
        other = await http.post(PATH, content=b"anything else")
    assert other.content == answer.content


async def test_a_signed_body_of_any_bytes_is_kept_in_quarantine() -> None:
    kept = MemoryLog()
    async with client(handler(kept)) as http:
        answer = await http.post(PATH, content=b"\xff\xfe", headers=signed(b"\xff\xfe"))
    assert answer.status_code == 200
    assert [record.topic for record in kept.records] == ["quarantine"]


async def test_the_largest_body_is_accepted_and_one_more_byte_is_not() -> None:
    body = BODY + b" " * (2000 - len(BODY))
    for limit, status in ((2000, 200), (1999, 413)):
        async with client(handler(MemoryLog(), max_bytes=limit)) as http:
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
    await handler(MemoryLog())(scope, receive, send)
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("said", [[], [{"type": "http.request", "body": b"{", "more_body": True}]])
async def test_a_body_cut_short_is_a_400(said) -> None:
    messages = iter([*said, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    sent = []

    async def send(message) -> None:
        sent.append(message)

    kept = MemoryLog()
    await handler(kept)({"type": "http", "path": PATH, "method": "POST", "headers": []}, receive, send)
    assert sent[0]["status"] == 400
    assert not kept.records


class Client:
    """A request whose parts a test sends one by one."""

    def __init__(self, app: Handler, headers: dict[str, str]) -> None:
        self._parts: asyncio.Queue[dict] = asyncio.Queue()
        self._sent: list[dict] = []
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "path": PATH, "method": "POST", "headers": pairs}
        self._task = asyncio.create_task(app(scope, self._parts.get, self._send))

    async def _send(self, message) -> None:
        self._sent.append(message)

    async def part(self, body: bytes) -> None:
        """Send a part that is not the last; return when it was taken."""
        self._parts.put_nowait({"type": "http.request", "body": body, "more_body": True})
        await eventually(self._parts.empty, "the part is taken")

    async def end(self, message: dict) -> int:
        """Send the last message; the answer's status."""
        self._parts.put_nowait(message)
        return await self.status()

    async def status(self) -> int:
        async with asyncio.timeout(5):
            await self._task
        return self._sent[0]["status"]

    async def went(self) -> None:
        """The server ends the request."""
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_the_bytes_of_all_bodies_are_limited_from_their_first_byte(monkeypatch) -> None:
    monkeypatch.setattr(module, "_MAX_HELD", 2000)
    monkeypatch.setattr(module, "_MAX_HELD_IN_PARTS", 1500)
    app = handler(MemoryLog())
    whole = BODY + b" " * (900 - len(BODY))

    async def in_parts() -> int:
        one = Client(app, signed(whole))
        await one.part(whole[:500])
        return await one.end({"type": "http.request", "body": whole[500:]})

    for _ in range(3):
        unsigned = [Client(app, {}) for _ in range(2)]
        for one in unsigned:
            await one.part(b"x" * 600)
        assert await in_parts() == 503
        # What comes in one part still has room.
        async with client(app) as http:
            assert (await http.post(PATH, content=BODY, headers=signed(BODY))).status_code == 200
            assert (await http.post(PATH, content=whole, headers=signed(whole))).status_code == 503
        # However one ends, its room is there again.
        assert await unsigned[0].end({"type": "http.disconnect"}) == 400
        assert await in_parts() == 200
        await unsigned[1].went()


async def test_a_body_that_waits_for_the_log_counts_too(monkeypatch) -> None:
    monkeypatch.setattr(module, "_MAX_HELD", 300)
    app = handler(Silent())
    waiting = Client(app, signed(BODY))
    sent = asyncio.create_task(waiting.end({"type": "http.request", "body": BODY}))
    await eventually(lambda: app._memory.held, "the body is held")
    async with client(app) as http:
        large = BODY + b" " * (300 - len(BODY))
        assert (await http.post(PATH, content=large, headers=signed(large))).status_code == 503
    await waiting.went()
    await asyncio.wait([sent])
    assert app._memory.held == 0


@pytest.mark.parametrize(
    "log", [MemoryLog(KafkaTimeoutError()), MemoryLog(OSError()), MemoryLog(ValueError()), Silent()]
)
async def test_without_acknowledgement_the_answer_is_503(log) -> None:
    async with client(handler(log, acknowledged_within=0.05)) as http:
        answer = await http.post(PATH, content=BODY, headers=signed(BODY))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_other_methods_and_paths() -> None:
    async with client(handler(MemoryLog())) as http:
        assert (await http.get(PATH)).status_code == 405
        assert (await http.put(PATH, content=BODY, headers=signed(BODY))).status_code == 405
        assert (await http.post("/", content=BODY, headers=signed(BODY))).status_code == 404


async def test_outcomes_are_counted() -> None:
    step = json.dumps({"eventType": "workflow_run.step_run.processed", "payload": {}}).encode()
    kept = MemoryLog()
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


async def test_a_trailing_slash_is_accepted() -> None:
    kept = MemoryLog()
    async with client(handler(kept)) as http:
        answer = await http.post(PATH + "/", content=BODY, headers=signed(BODY))
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert len(kept.records) == 1
        assert (await http.post(PATH + "/", content=BODY)).status_code == 401
        assert (await http.get(PATH + "/")).status_code == 405
        for other in (PATH + "/x", PATH + "x/", "/webhooks/", "/"):
            assert (await http.post(other, content=BODY, headers=signed(BODY))).status_code == 404


@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_doctor_accepts_every_url_that_the_bridge_accepts(slash: str) -> None:
    """The doctor checks the URL of Extend's endpoint, and posts to the same URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{PATH}{slash}"
    endpoint = {"id": "wh_1", "url": url, "status": "enabled", "apiVersion": API_VERSION}
    app = with_health(Health(), Handler(MemoryLog(), [SECRET]))
    async with http_server(f"127.0.0.1:{port}", app, drain=1.0):
        for wanted in ("", url, url.rstrip("/")):
            (judged,), found = judge_endpoint(Answer(200, body=[endpoint]), wanted, [])
            assert (judged.level, found) == ("ok", [endpoint])
        tested = judge_self_test("webhook address", await self_test(url, SECRET, 1))
        async with httpx.AsyncClient() as http:
            health = [await http.get(f"http://127.0.0.1:{port}/{name}{slash}") for name in ("healthz", "readyz")]
            metrics = await http.get(f"http://127.0.0.1:{port}/metrics{slash}")
    assert tested.level == "ok", tested
    assert [answer.status_code for answer in (*health, metrics)] == [200, 200, 200]


async def test_the_signing_secret_is_counted() -> None:
    app = handler(MemoryLog())
    async with client(app) as http:
        for secret in (SECRET, b"wss_b", b"wss_b", b"wss_unknown"):
            await http.post(PATH, content=BODY, headers=signed(BODY, secret))
        # The doctor's own tests say nothing of what Extend signs with.
        await http.post(PATH, content=SELF_TEST, headers=signed(SELF_TEST, b"wss_b"))
    text = generate_latest(app.registry).decode()
    assert 'everyrun_bridge_signed_total{secret="1"} 1.0' in text
    assert 'everyrun_bridge_signed_total{secret="2"} 2.0' in text
    one = Handler(MemoryLog(), [SECRET], clock=lambda: NOW)
    async with client(one) as http:
        assert (await http.post(PATH, content=BODY, headers=signed(BODY))).status_code == 200
    assert 'everyrun_bridge_signed_total{secret="1"} 1.0' in generate_latest(one.registry).decode()
