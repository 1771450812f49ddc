"""Verify webhooks, append them to the log, and answer: ``POST /webhooks/extend`` as a plain ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry, Counter

from everyrun import telemetry
from everyrun.extend.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, signer, verify
from everyrun.failpoints import hit
from everyrun.log.cloudevents import SIGNED_TIME, timestamp
from everyrun.log.observation import SELF_TEST, interpret
from everyrun.log.producer import Log
from everyrun.serve import Receive, Scope, Send

_log = telemetry.log(__name__)

PATH = "/webhooks/extend"
OUTCOMES = (
    *("observed", "deferred", "step", "quarantined", "unauthorized", "too_large", "incomplete", "unavailable"),
    *("self_test", "self_test_refused"),
)

#: Timeouts in seconds. Extend waits 30 s for an answer (docs.extend.ai, webhooks, best practices).
_ACKNOWLEDGED_WITHIN = 20.0
_BODY_WITHIN = 25.0
#: Maximum number of bytes in memory for the bodies of all requests together, including unsigned requests. A body is
#: counted from its first byte until the log has acknowledged it. Webhooks beyond the maximum are answered with 503. For
#: a body that arrives in several parts, the maximum is lower, so that slow senders leave room for bodies that arrive in
#: one part. Nearly all bodies arrive in one part.
_MAX_HELD = 128 << 20
_MAX_HELD_IN_PARTS = 96 << 20


class _TooLargeError(Exception):
    pass


class _OutOfMemoryError(Exception):
    pass


class _BodyMemory:
    """Counts the bytes that all bodies hold in memory."""

    def __init__(self) -> None:
        self.held = 0

    def reservation(self) -> _Reservation:
        """Return a reservation for one request. At first, it holds no bytes."""
        return _Reservation(self)


class _Reservation:
    """The bytes that one request holds in memory. The end of the ``with`` block releases them."""

    def __init__(self, memory: _BodyMemory) -> None:
        self._memory = memory
        self._bytes = 0

    def __enter__(self) -> _Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.held -= self._bytes

    def add(self, size: int, limit: int) -> None:
        """Reserve more bytes. Raises _OutOfMemoryError if all requests together would then hold more than ``limit``."""
        if self._memory.held + size > limit:
            raise _OutOfMemoryError
        self._memory.held += size
        self._bytes += size


class Handler:
    """The bridge's ASGI application; ``registry`` holds its metrics."""

    def __init__(
        self,
        log: Log,
        secrets: Sequence[bytes],
        *,
        max_age: int = 300,
        max_ahead: int = 60,
        max_bytes: int = 11 << 20,
        clock: Callable[[], float] = time.time,
        acknowledged_within: float = _ACKNOWLEDGED_WITHIN,
    ) -> None:
        self.log = log
        self._secrets = tuple(secrets)
        self._max_age = max_age
        self._max_ahead = max_ahead
        self._max_bytes = max_bytes
        self._clock = clock
        self._within = acknowledged_within
        self._memory = _BodyMemory()
        self.registry = CollectorRegistry()
        counter = Counter("everyrun_bridge_webhooks", "Webhooks by outcome.", ["outcome"], registry=self.registry)
        self._counters = {outcome: counter.labels(outcome) for outcome in OUTCOMES}
        signed = Counter(
            "everyrun_bridge_signed",
            "Accepted webhooks by the secret that signed them: its position in EVERYRUN_WEBHOOK_SECRETS, from 1.",
            ["secret"],
            registry=self.registry,
        )
        self._signed = [signed.labels(str(number)) for number in range(1, 1 + len(self._secrets))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        A webhook that belongs in the log is answered with 200 only after the log has acknowledged it. If the log does
        not acknowledge it, the answer is 503. The answer is never 500.
        """
        if scope["type"] != "http":
            return
        # Accept a trailing slash. A redirect would lose the webhook, because Extend does not follow it.
        if scope["path"].rstrip("/") == PATH:
            if scope["method"] == "POST":
                await self._webhook(scope, receive, send)
            else:
                body = b'{"code":"METHOD_NOT_ALLOWED","message":"use POST"}'
                await _answer(send, 405, body, (b"allow", b"POST"))
        else:
            await _answer(send, 404, b'{"code":"NOT_FOUND","message":"the webhook endpoint is /webhooks/extend"}')

    async def _webhook(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._memory.reservation() as reservation:
                outcome = await self._outcome(scope, receive, reservation)
        except _OutOfMemoryError:
            outcome = "unavailable"
        except (TimeoutError, KafkaError, OSError) as error:
            _log.warning("a webhook was not accepted; Extend will retry it", error=f"{type(error).__name__}: {error}")
            outcome = "unavailable"
        except Exception:
            _log.exception("a webhook was not accepted; Extend will retry it")
            outcome = "unavailable"
        self._counters[outcome].inc()
        start, body = _ANSWERS[outcome]
        await send(start)
        await send(body)

    async def _outcome(self, scope: Scope, receive: Receive, reservation: _Reservation) -> str:
        stamp, signature, length = _read_headers(scope["headers"])
        if length > self._max_bytes:
            return "too_large"
        message = await receive()
        body: bytes | None = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body") or len(body or b"") > self._max_bytes:
            try:
                async with asyncio.timeout(_BODY_WITHIN):
                    body = await self._rest(receive, message, reservation)
            except TimeoutError:
                return "incomplete"
            except _TooLargeError:
                return "too_large"
        else:
            reservation.add(len(body or b""), _MAX_HELD)
        if body is None:
            return "incomplete"
        received = self._clock()
        problem = verify(stamp, signature, body, self._secrets, received, self._max_age, self._max_ahead)
        if problem is not None or stamp is None:
            # If the refused request is a test by the doctor, count it separately from refused webhooks.
            return "self_test_refused" if body == SELF_TEST else "unauthorized"
        # Use our own clock for the time of the event. The time in Extend's signature is rounded down to whole seconds,
        # so it may be before the end of the run.
        meaning = interpret(body, scope["headers"], timestamp(received))
        if meaning.record is None:
            self._count_signer(stamp, signature, body)
            return meaning.outcome
        meaning.record.headers.append((SIGNED_TIME, _signed_time(stamp)))
        hit("bridge.before_produce")
        async with asyncio.timeout(self._within):
            await self.log.append((meaning.record,))
        hit("bridge.after_produce")
        self._count_signer(stamp, signature, body)
        return meaning.outcome

    def _count_signer(self, stamp: bytes, signature: bytes | None, body: bytes) -> None:
        """Count an accepted webhook by the secret that signed it, so that operators see when a rotation is complete.

        The doctor's tests are not counted.
        """
        if body == SELF_TEST:
            return
        number = 1 if len(self._secrets) == 1 else signer(stamp, signature or b"", body, self._secrets)
        if number is not None:
            self._signed[number - 1].inc()

    async def _rest(self, receive: Receive, message: dict[str, Any], reservation: _Reservation) -> bytes | None:
        """Return the complete body, or None if the client disconnected. ``message`` holds its first part."""
        parts, size = [], 0
        while message["type"] == "http.request":
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                raise _TooLargeError
            reservation.add(len(part), _MAX_HELD_IN_PARTS)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()
        return None


@lru_cache(maxsize=64)
def _signed_time(stamp: bytes) -> bytes:
    return timestamp(int(stamp)).encode()


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None, int]:
    """Return timestamp, signature and content-length (0 if absent).

    If the timestamp or the signature is repeated, the first one is returned.
    """
    stamp = signature = None
    length = 0
    for name, value in headers:
        if name == TIMESTAMP_HEADER:
            stamp = value if stamp is None else stamp
        elif name == SIGNATURE_HEADER:
            signature = value if signature is None else signature
        elif name == b"content-length" and value.isdigit():
            length = int(value) if len(value) < 19 else 1 << 62
    return stamp, signature, length


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    for message in _messages(status, body, *headers):
        await send(message)


def _messages(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two ASGI messages of an answer: its start and its body."""
    kind = () if any(name == b"content-type" for name, _ in headers) else (_JSON,)
    size = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*kind, size, *headers]}
    return start, {"type": "http.response.body", "body": body}


_JSON = (b"content-type", b"application/json")
_ACCEPTED = (200, b'{"status":"ok"}')
_UNAUTHORIZED = (401, b'{"code":"UNAUTHORIZED","message":"not signed by a known secret, or the timestamp is too old"}')
_PLAIN: dict[str, tuple[Any, ...]] = {
    "observed": _ACCEPTED,
    "deferred": _ACCEPTED,
    "step": _ACCEPTED,
    "quarantined": _ACCEPTED,
    "self_test": (200, b'{"status":"self-test"}'),
    "unauthorized": _UNAUTHORIZED,
    "self_test_refused": _UNAUTHORIZED,
    # Keep the connection open. If the server closed it while the client still sends, the connection would be reset
    # before the client has read the answer.
    "too_large": (413, b'{"code":"TOO_LARGE","message":"the body is too large"}'),
    "incomplete": (400, b'{"code":"INCOMPLETE","message":"the body is incomplete"}', (b"connection", b"close")),
    "unavailable": (503, b'{"code":"UNAVAILABLE","message":"not accepted; send it again"}', (b"retry-after", b"5")),
}
_ANSWERS = {outcome: _messages(*_PLAIN[outcome]) for outcome in OUTCOMES}
