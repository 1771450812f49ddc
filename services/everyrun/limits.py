"""What one HTTP request may take of us: bytes and lines before its body, bytes of its body, and time for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

#: The request line and the headers together, in bytes; and how many headers.
HEAD_BYTES = 32 << 10
HEAD_LINES = 100
#: Seconds in which they must have come, from the request's first byte. A connection without one is idle, and closed
#: after EVERYRUN_KEEP_ALIVE, also if it never had a request: load balancers open connections ahead.
HEAD_WITHIN = 10.0
#: A body has so many seconds, and one more for each so many bytes that came: what is slower is given up.
BODY_WITHIN = 25.0
BODY_BYTES_A_SECOND = 4 << 10
#: What still comes of a request after its answer is read for so many seconds, so that the answer is not reset unread.
LINGER = 10.0


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which has no limits of its own on what comes before a body, and on how slowly it comes."""

    _in_head = False
    _head = 0
    _refused = False
    _whole = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came: its first request must follow."""
        super().connection_made(transport)
        self._arm(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """It went."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse a head that does not end."""
        was_in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head:
            self._bound_idleness()
            return
        # The part that a head began in holds what was before it too; it is checked whole when it ends.
        self._head += len(data) if was_in_head else 0
        if self._head > HEAD_BYTES:
            self._refuse()
        elif self._timer is None:
            self._arm(HEAD_WITHIN)

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._disarm()
        self._in_head, self._whole, self._head = True, False, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its headers are whole."""
        self._in_head = False
        self._disarm()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > HEAD_LINES or size > HEAD_BYTES:
            self._refused = True
            raise ValueError("the head is too large")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is whole."""
        self._whole = True
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered."""
        super().on_response_complete()
        if not self._whole:
            self._arm(LINGER)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request of HTTP, or one whose head is too large."""
        if not self._refused:
            super().send_400_response(msg)
            return
        body = b'{"code":"HEADERS_TOO_LARGE","message":"too many headers, or too long"}'
        size = str(len(body)).encode()
        head = STATUS_LINE[431] + b"content-type: application/json\r\ncontent-length: " + size
        self.transport.write(head + b"\r\nconnection: close\r\n\r\n" + body)
        self.transport.close()

    def _refuse(self) -> None:
        self._refused = True
        self.send_400_response("")

    def _bound_idleness(self) -> None:
        """Close later what is idle. Line breaks between requests begin none, and end uvicorn's own keep-alive timer."""
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


def patient(app: AsgiApp, clock: Callable[[], float] = time.monotonic) -> AsgiApp:
    """``app`` with bodies that must come in time: one that is too slow ends for it as if the client had gone."""

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
            # Only waiting for the client counts, not what the app does meanwhile.
            left += len(message.get("body", b"")) / BODY_BYTES_A_SECOND - (clock() - began)
            left = min(left, BODY_WITHIN)
            whole = not message.get("more_body")
            return message

        await app(scope, in_time, send)

    return asgi
