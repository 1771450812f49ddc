"""HTTP requests have limits in size and time, tested over real sockets."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeGuard

import pytest
import uvicorn
from fastapi import Request
from pydantic import SecretStr

import everyrun
from everyrun import http as our_http
from everyrun import limits
from everyrun.health import Health
from everyrun.http import api, scope
from everyrun.serve import http_server, with_health
from everyrun.settings import Settings
from tests.conftest import free_port

TOKEN = "ert_of_the_tests_of_limits"
HEAD = f"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n".encode()


@asynccontextmanager
async def serving(keep_alive: int = 75) -> AsyncIterator[int]:
    app = api("t", "", Settings(api_token=SecretStr(TOKEN)), None, frozenset({"/stream"}))  # type: ignore[arg-type]

    async def echo(request: Request) -> int:
        return len(await request.body())

    async def parsed(given: dict[str, Any]) -> int:
        return len(given)

    for path in ("/echo", "/stream"):
        app.post(path, dependencies=[scope("submit")])(echo)
    app.post("/parsed", dependencies=[scope("submit")])(parsed)
    port = free_port()
    async with http_server(f"127.0.0.1:{port}", app, drain=1.0, keep_alive=keep_alive):
        yield port


async def said(port: int, *parts: bytes, pause: float = 0.0, ends: bool = False) -> bytes:
    """Return all that the server sends until it closes or resets the connection. ``ends`` first ends our side."""
    heard = b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def speak() -> None:
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            if ends:
                writer.write_eof()
        except OSError:
            pass

    speaking = asyncio.create_task(speak())
    try:
        async with asyncio.timeout(60):
            while part := await reader.read(1 << 16):
                heard += part
    except ConnectionResetError:
        # The connection was closed while the client was still sending.
        pass
    finally:
        speaking.cancel()
        writer.close()
    return heard


def statuses(answer: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"HTTP/1.1 (\d+)", answer)]


CLOSE = b"connection: close\r\n"
WHOLE = HEAD + b"content-length: 0\r\n\r\n"


@pytest.mark.parametrize("head_within", [0.3, 60.0])
@pytest.mark.parametrize(
    "sent", [(), (WHOLE,), (WHOLE, WHOLE), (WHOLE, b"\r\n"), (b"\r\n",)], ids=["new", "used", "twice", "line", "only"]
)
async def test_idle_connection_is_closed_after_keep_alive(
    sent: tuple[bytes, ...], head_within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_WITHIN", head_within)
    loop = asyncio.get_running_loop()
    async with serving(keep_alive=2) as port:
        began = loop.time()
        async with asyncio.timeout(30):
            answers = statuses(await said(port, *sent, pause=0.2))
    assert answers == [200] * sum(part == WHOLE for part in sent)
    assert loop.time() - began >= 2.0


async def test_load_balancer_may_keep_connections_for_a_minute() -> None:
    """The default of each service and of the setting is longer than the usual 60 s of a load balancer."""
    assert Settings().keep_alive > 60
    asked: list[int] = []

    class Config(uvicorn.Config):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            asked.append(self.timeout_keep_alive)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Config", Config)
        for options in ({}, {"keep_alive": 130}):
            async with http_server(f"127.0.0.1:{free_port()}", with_health(Health()), **options):
                pass
    assert asked == [75, 130]


SERVICES = {"bridge", "notifier", "processor", "query", "reconciler", "replay", "submission"}


def test_every_service_uses_keep_alive() -> None:
    for path in sorted(Path(everyrun.__file__).parent.glob("*/app.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if _serves(node)]
        assert all(any(word.arg == "keep_alive" for word in call.keywords) for call in calls), path
        assert bool(calls) == (path.parent.name in SERVICES), path


def _serves(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "http_server"


@pytest.mark.parametrize("path", [b"/echo", b"/stream"])
async def test_trailing_slash_is_the_same_path_without_a_redirect(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_http, "BODY_BYTES", 1000)
    size = 5000 if path == b"/stream" else 10
    body = b"content-length: %d\r\n\r\n" % size + b"x" * size
    async with serving() as port:
        for slash in (b"", b"/"):
            answer = await said(port, HEAD.replace(b"/echo", path + slash) + CLOSE + body)
            assert statuses(answer) == [200], answer
            assert answer.endswith(b"%d" % size)
        assert statuses(await said(port, HEAD.replace(b"/echo", b"/nothing/") + CLOSE + body)) == [404]


async def test_request_within_the_limits_is_answered() -> None:
    many = b"".join(b"x-%d: y\r\n" % n for n in range(limits.HEAD_LINES - 10))
    async with serving() as port:
        assert statuses(await said(port, HEAD + CLOSE + many + b"content-length: 3\r\n\r\nabc")) == [200]
        slow = [HEAD + CLOSE, b"content-length: 3\r\n\r\n", b"a", b"b", b"c"]
        assert statuses(await said(port, *slow, pause=0.1)) == [200]


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"x-%d: y\r\n" % n for n in range(limits.HEAD_LINES + 1)) + b"\r\n",
        b"x: " + b"y" * (limits.HEAD_BYTES + 1) + b"\r\n\r\n",
        b"x" * (limits.HEAD_BYTES + 1) + b": y\r\n\r\n",
    ],
)
async def test_too_many_or_too_long_headers_are_refused(flood: bytes) -> None:
    async with serving() as port:
        assert statuses(await said(port, HEAD + flood)) == [431]
        assert statuses(await said(port, b"GET /" + b"x" * (limits.HEAD_BYTES + 1) + b" HTTP/1.1\r\n\r\n")) == [431]


async def test_endless_head_is_cut_off_soon_after_the_limit() -> None:
    endless = [b"x" * 16384] * 1000
    async with serving() as port:
        assert statuses(await said(port, HEAD + b"x: ", *endless)) in ([431], [])
        lines = [b"x: y\r\n" * 2000] * 1000
        assert statuses(await said(port, HEAD, *lines)) in ([431], [])


async def test_slow_head_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_WITHIN", 0.5)
    async with serving() as port:
        assert await said(port, b"GET /", *[b"x"] * 1000, pause=0.05) == b""
        assert await said(port, HEAD, *[b"x: y\r\n"] * 1000, pause=0.05) == b""
        # The limit also holds for the second request of a connection.
        monkeypatch.setattr(limits, "HEAD_WITHIN", 3.0)
        first = HEAD + b"content-length: 0\r\n\r\n"
        assert statuses(await said(port, first, b"", HEAD, *[b"x: y\r\n"] * 1000, pause=0.05)) == [200]


async def test_slow_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_WITHIN", 0.5)
    head = HEAD + b"content-length: 100000\r\n\r\n"
    async with serving() as port:
        answer = await said(port, head)
        assert statuses(answer) == [400]
        assert b"INCOMPLETE" in answer
        # A client that still sends when the connection is closed may miss the response.
        assert statuses(await said(port, head, *[b"x"] * 1000, pause=0.05)) in ([400], [])


@pytest.mark.parametrize(("a_second", "comes_whole"), [(limits.BODY_BYTES_PER_SECOND, True), (1000, False)])
async def test_body_at_minimum_speed_may_take_any_time(a_second: int, comes_whole: bool) -> None:
    now, sent = 0.0, 0

    async def receive() -> dict[str, Any]:
        nonlocal now, sent
        now += 1.0
        sent += 1
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x" * a_second, "more_body": sent < 1000}

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        assert (message["type"] == "http.request") is comes_whole

    await limits.with_body_timeout(app, lambda: now)({"type": "http"}, receive, None)
    assert (sent == 1000) is comes_whole


async def test_client_that_sends_on_after_its_response_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINGER", 0.5)
    unauthorized = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    async with serving() as port:
        assert statuses(await said(port, unauthorized, *[b"x"] * 1000, pause=0.05)) == [401]


async def test_body_size_is_limited_except_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_http, "BODY_BYTES", 1000)
    body = b"content-length: 1001\r\n\r\n" + b"x" * 1001
    async with serving() as port:
        for path, wanted in ((b"/echo", 413), (b"/parsed", 413), (b"/stream", 200)):
            answer = await said(port, HEAD.replace(b"/echo", path) + CLOSE + body)
            assert statuses(answer) == [wanted], answer
            assert wanted == 200 or b"TOO_LARGE" in answer


@pytest.mark.parametrize("depth", [900, 10_000, 1_000_000])
async def test_deeply_nested_body_is_refused_or_accepted(depth: int) -> None:
    body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    head = HEAD.replace(b"/echo", b"/parsed") + CLOSE + b"content-type: application/json\r\n"
    async with serving() as port:
        answer = await said(port, head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert statuses(answer) in ([400], [422], [200])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_garbage_is_refused_and_the_next_client_is_served(
    garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = HEAD + CLOSE + b"content-length: 0\r\n\r\n"
    async with serving() as port:
        answer = await said(port, garbage, ends=True)
        assert set(statuses(answer)) <= {400, 401}, answer
        # A valid request before the garbage on one connection is answered.
        pipelined = await said(port, HEAD + b"content-length: 0\r\n\r\n" + garbage, ends=True)
        assert set(statuses(pipelined)) <= {200, 400, 401}
        assert statuses(await said(port, good)) == [200]
