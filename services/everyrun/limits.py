"""Limit what an HTTP client can use up: the size of a request's head, and the time for its head and its body.

The head is the request line and the headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

#: Maximum size of a head in bytes, and maximum number of headers.
HEAD_BYTES = 32 << 10
HEAD_LINES = 100
#: Seconds from the first byte of a request to the end of its head. The time before the first byte does not count: load
#: balancers open connections in advance, and a connection without a request may be idle for EVERYRUN_KEEP_ALIVE.
HEAD_WITHIN = 10.0
#: A body may take BODY_WITHIN seconds, and one more second for every BODY_BYTES_PER_SECOND bytes that arrive. If it
#: takes longer, the request is given up.
BODY_WITHIN = 25.0
BODY_BYTES_PER_SECOND = 4 << 10
#: If a response is sent before the whole request was read, the rest of the request is still read for this many seconds:
#: closing the connection at once could prevent the client from reading the response.
LINGER = 10.0


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits on the size and the time of a request's head."""

    _in_head = False
    _head = 0
    _refused = False
    _whole = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for an idle connection, which waits for its first request."""
        super().connection_made(transport)
        self._arm(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data. Refuse a head that is too large, and start the timer for a head that is not complete."""
        was_in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head:
            self._bound_idleness()
            return
        # Do not count the data in which the head begins, because they may contain the end of an earlier request.
        # on_headers_complete checks the exact size.
        self._head += len(data) if was_in_head else 0
        if self._head > HEAD_BYTES:
            self._refuse()
        elif self._timer is None:
            self._arm(HEAD_WITHIN)

    def on_message_begin(self) -> None:
        """Start to count the bytes of a head."""
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
        """Record that the whole request was read."""
        self._whole = True
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """If the request was not read completely, limit the time for its rest."""
        super().on_response_complete()
        if not self._whole:
            self._arm(LINGER)

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with 400, and a request whose head is too large with 431."""
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
        """Start a timer that closes an idle connection, if none is running.

        uvicorn stops its own timer when any bytes arrive, even if they are only line breaks and no request.
        """
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
    """Wrap ``app`` so that, if a body arrives too slowly, the app sees that the client disconnected."""

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
            # Count only the time spent waiting for the client, and not the time in which the app works.
            left += len(message.get("body", b"")) / BODY_BYTES_PER_SECOND - (clock() - began)
            left = min(left, BODY_WITHIN)
            whole = not message.get("more_body")
            return message

        await app(scope, in_time, send)

    return asgi
