"""``POST /webhooks/extend`` as a plain ASGI application: verify, write to the log, answer."""

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

#: Extend gives an answer 30 s (docs.extend.ai, webhooks, best practices): ours comes before that, whatever happens.
_ACKNOWLEDGED_WITHIN = 20.0
_BODY_WITHIN = 25.0
#: Bodies held at the same time, signed or not, from their first byte to the log's answer; over it Extend is told to
#: come again. A quarter is left to those that come in one part, as nearly all do: who sends slowly does not keep them.
_HELD_AT_MOST = 128 << 20
_IN_PARTS_AT_MOST = 96 << 20


class _TooLargeError(Exception):
    pass


class _NoRoomError(Exception):
    pass


class _Room:
    """Bytes that are held for all requests."""

    def __init__(self) -> None:
        self.held = 0

    def share(self) -> _Share:
        """Nothing yet, for one request."""
        return _Share(self)


class _Share:
    """Bytes held for one request; given back at the block's end."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._bytes = 0

    def __enter__(self) -> _Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.held -= self._bytes

    def add(self, size: int, most: int) -> None:
        """Hold so many more. Raises _NoRoomError where all requests would then hold more than ``most``."""
        if self._room.held + size > most:
            raise _NoRoomError
        self._room.held += size
        self._bytes += size


class Handler:
    """The bridge's ASGI application; ``registry`` has what it counts."""

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
        self._room = _Room()
        self.registry = CollectorRegistry()
        counter = Counter("everyrun_bridge_webhooks", "Webhooks by outcome.", ["outcome"], registry=self.registry)
        self._counters = {outcome: counter.labels(outcome) for outcome in OUTCOMES}
        signed = Counter(
            "everyrun_bridge_signed",
            "Webhooks taken, by the secret that signed them: its place in EVERYRUN_WEBHOOK_SECRETS, from 1.",
            ["secret"],
            registry=self.registry,
        )
        self._signed = [signed.labels(str(place)) for place in range(1, 1 + len(self._secrets))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. 2xx only after the log has acknowledged; 503 where it does not; never a 500."""
        if scope["type"] != "http":
            return
        # A slash at the end is the same address; a redirect would lose the webhook, which Extend does not follow.
        if scope["path"].rstrip("/") == PATH:
            if scope["method"] == "POST":
                await self._webhook(scope, receive, send)
            else:
                body = b'{"code":"METHOD_NOT_ALLOWED","message":"POST only"}'
                await _answer(send, 405, body, (b"allow", b"POST"))
        else:
            await _answer(send, 404, b'{"code":"NOT_FOUND","message":"nothing is here"}')

    async def _webhook(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._room.share() as share:
                outcome = await self._outcome(scope, receive, share)
        except _NoRoomError:
            outcome = "unavailable"
        except (TimeoutError, KafkaError, OSError) as error:
            _log.warning("a webhook was not taken; Extend sends it again", error=f"{type(error).__name__}: {error}")
            outcome = "unavailable"
        except Exception:
            _log.exception("a webhook was not taken; Extend sends it again")
            outcome = "unavailable"
        self._counters[outcome].inc()
        start, body = _ANSWERS[outcome]
        await send(start)
        await send(body)

    async def _outcome(self, scope: Scope, receive: Receive, share: _Share) -> str:
        stamp, signature, length = _read_headers(scope["headers"])
        if length > self._max_bytes:
            return "too_large"
        message = await receive()
        body: bytes | None = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body") or len(body or b"") > self._max_bytes:
            try:
                async with asyncio.timeout(_BODY_WITHIN):
                    body = await self._rest(receive, message, share)
            except TimeoutError:
                return "incomplete"
            except _TooLargeError:
                return "too_large"
        else:
            share.add(len(body or b""), _HELD_AT_MOST)
        if body is None:
            return "incomplete"
        received = self._clock()
        wrong = verify(stamp, signature, body, self._secrets, received, self._max_age, self._max_ahead)
        if wrong is not None or stamp is None:
            # The doctor's own refusals must not look like Extend's.
            return "self_test_refused" if body == SELF_TEST else "unauthorized"
        # When Everyrun was told, by our own clock: Extend signs in whole seconds, which lie before a run's own end.
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
        """Count which secret signed what is taken, so that a rotation can be followed; the doctor's tests are not."""
        if body == SELF_TEST:
            return
        place = 1 if len(self._secrets) == 1 else signer(stamp, signature or b"", body, self._secrets)
        if place is not None:
            self._signed[place - 1].inc()

    async def _rest(self, receive: Receive, message: dict[str, Any], share: _Share) -> bytes | None:
        """The whole body, of which ``message`` is the first part; None where the client broke off."""
        parts, size = [], 0
        while message["type"] == "http.request":
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                raise _TooLargeError
            share.add(len(part), _IN_PARTS_AT_MOST)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()
        return None


@lru_cache(maxsize=64)
def _signed_time(stamp: bytes) -> bytes:
    return timestamp(int(stamp)).encode()


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None, int]:
    """Timestamp, signature, content-length (0 where there is none); of a repeated header the first."""
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
    """The two ASGI messages of an answer."""
    kind = () if any(name == b"content-type" for name, _ in headers) else (_JSON,)
    size = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*kind, size, *headers]}
    return start, {"type": "http.response.body", "body": body}


_JSON = (b"content-type", b"application/json")
_TAKEN = (200, b'{"status":"ok"}')
_UNAUTHORIZED = (401, b'{"code":"UNAUTHORIZED","message":"not signed, or not lately, by a known secret"}')
_PLAIN: dict[str, tuple[Any, ...]] = {
    "observed": _TAKEN,
    "deferred": _TAKEN,
    "step": _TAKEN,
    "quarantined": _TAKEN,
    "self_test": (200, b'{"status":"self-test"}'),
    "unauthorized": _UNAUTHORIZED,
    "self_test_refused": _UNAUTHORIZED,
    # The connection stays: closing it while the client still sends would reset it before it has read the answer.
    "too_large": (413, b'{"code":"TOO_LARGE","message":"the body is too large"}'),
    "incomplete": (400, b'{"code":"INCOMPLETE","message":"the body did not come whole"}', (b"connection", b"close")),
    "unavailable": (503, b'{"code":"UNAVAILABLE","message":"not taken; send it again"}', (b"retry-after", b"5")),
}
_ANSWERS = {outcome: _messages(*_PLAIN[outcome]) for outcome in OUTCOMES}
