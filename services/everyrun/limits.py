"""Limit an HTTP request: bytes and lines before its body, and the time for its head and its body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

#: Maximum size of the request line and the headers together, and maximum number of headers.
HEAD_BYTES = 32 << 10
HEAD_LINES = 100
#: Seconds from the first byte of a request to the end of its head. A connection without a request is idle, and closed
#: after EVERYRUN_KEEP_ALIVE, even if it never had one, because load balancers open connections ahead.
HEAD_WITHIN = 10.0
#: Seconds for a body, and the bytes that earn it one more second. A slower body is given up.
BODY_WITHIN = 25.0
BODY_BYTES_PER_SECOND = 4 << 10
#: Seconds for which the rest of a request is read after its response, so that the client can read the response.
LINGER = 10.0


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits on the size and the time of a request's head."""

    _in_head = False
    _head = 0
    _refused = False
    _whole = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._arm(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data, and refuse a head that is too large or too slow."""
        was_in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head:
            self._bound_idleness()
            return
        # The data in which a head begins may hold an earlier request too. The whole head is checked when it ends.
        self._head += len(data) if was_in_head else 0
        if self._head > HEAD_BYTES:
            self._refuse()
        elif self._timer is None:
            self._arm(HEAD_WITHIN)

    def on_message_begin(self) -> None:
        """Start to count a head."""
        self._disarm()
        self._in_head, self._whole, self._head = True, False, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the size of the head."""
        self._in_head = False
        self._disarm()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > HEAD_LINES or size > HEAD_BYTES:
            self._refused = True
            raise ValueError("the head is too large")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the whole request was read."""
        self._whole = True
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Limit the time for the rest of the request, if it was not read completely."""
        super().on_response_complete()
        if not self._whole:
            self._arm(LINGER)

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with 400, or one whose head is too large with 431."""
        if not self._refused:
            super().send_400_response(msg)
            return
        body = b'{"code":"HEADERS_TOO_LARGE","message":"the headers are too many or too long"}'
        size = str(len(body)).encode()
        head = STATUS_LINE[431] + b"content-type: application/json\r\ncontent-length: " + size
        self.transport.write(head + b"\r\nconnection: close\r\n\r\n" + body)
        self.transport.close()

    def _refuse(self) -> None:
        self._refused = True
        self.send_400_response("")

    def _bound_idleness(self) -> None:
        """Close an idle connection later. Line breaks between requests stop uvicorn's own timer, but are no request."""
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self._whole and self._timer is None and self.timeout_keep_alive_task is None:
            self._arm(self.timeout_keep_alive)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def with_body_timeout(app: AsgiApp, clock: Callable[[], float] = time.monotonic) -> AsgiApp:
    """Wrap ``app`` so that a body that arrives too slowly ends as if the client had disconnected."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        left, whole = BODY_WITHIN, False

        async def in_time() -> Any:
            nonlocal left, whole
            if whole:
                return await receive()
            began = clock()
            try:
                async with asyncio.timeout(max(left, 0)):
                    message = await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}
            # Count only the wait for the client, not the work of the app.
            left += len(message.get("body", b"")) / BODY_BYTES_PER_SECOND - (clock() - began)
            left = min(left, BODY_WITHIN)
            whole = not message.get("more_body")
            return message

        await app(scope, in_time, send)

    return asgi
