"""Delivering webhooks as Extend does: signed, retried with backoff, at least once while the retries last."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import Any, NamedTuple

import aiohttp
import msgspec

from everyrun.emulator import render
from everyrun.emulator.faults import Dice
from everyrun.emulator.runs import EVENTS, STEP_EVENT, Run
from everyrun.emulator.store import Store, run_write

#: The number of attempts is not documented; nor are the delays, but that they grow exponentially.
ATTEMPTS = 5
#: docs.extend.ai, webhooks/best-practices: an answer within 30 s, any 2xx.
TIMEOUT = 30.0
#: docs.extend.ai, webhooks/configuration: a signed link lasts an hour.
LINK_LASTS = 3600.0
_WORKERS = 64
_encode = msgspec.json.encode


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature header (SDK 1.20.0, wrapper/webhooks.py)."""
    return hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + body, hashlib.sha256).hexdigest()


class Delivery(NamedTuple):
    """One event on its way to one endpoint."""

    run: Run
    event_id: str
    event_type: str
    status: str
    endpoint_id: str
    attempt: int
    extra: bool


class Webhooks:
    """Sends events to the endpoints that have a subscription to the run's workflow."""

    def __init__(self, store: Store, dice: Dice, born: float, first_retry: float) -> None:
        self._store = store
        self._dice = dice
        self._born = born
        self._first_retry = first_retry
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._link_key = hashlib.sha256(str(born).encode()).digest()
        self.origin = ""
        self.endpoints: dict[str, dict[str, Any]] = store.things("endpoint")
        self.subscriptions: dict[str, dict[str, Any]] = store.things("subscription")
        self.counts = {"delivered": 0, "failed_attempts": 0, "dropped": 0, "given_up": 0, "pending": 0}

    def announce(self, run: Run) -> None:
        """Send the event of the run's present status, if it has one and anyone subscribed."""
        event_type = EVENTS.get(run.status)
        if event_type is None:
            return
        event_id = _event_id(run, run.status)
        for subscription in list(self.subscriptions.values()):
            if subscription["resourceId"] != run.workflow_id:
                continue
            if STEP_EVENT in subscription["enabledEvents"] and run.status == "PROCESSED":
                steps = Delivery(
                    run, f"{event_id}s", STEP_EVENT, run.status, subscription["webhookEndpointId"], 1, True
                )
                self._after(0, steps)
            if event_type in subscription["enabledEvents"]:
                self._announce(
                    Delivery(run, event_id, event_type, run.status, subscription["webhookEndpointId"], 1, False)
                )

    def _announce(self, delivery: Delivery) -> None:
        dice, event_id = self._dice, delivery.event_id
        delivery.run.events += 1
        self._store.later(run_write(delivery.run))
        if dice.strikes("drop", event_id):
            delivery.run.dropped += 1
            self.counts["dropped"] += 1
            self._store.later(run_write(delivery.run))
            return
        wait = dice.seconds("delay", event_id)
        if dice.strikes("reorder", event_id):
            wait += 0.3 + 1.2 * dice.number("overtaken", event_id)
        if dice.strikes("late", event_id):
            wait += self._first_retry * 2**ATTEMPTS
        self._after(wait, delivery)
        if dice.strikes("duplicate", event_id):
            self._after(wait + 1.5 * dice.number("again", event_id), delivery._replace(extra=True))

    def redeliver(self, run: Run) -> None:
        """After a restart: the event that was not delivered yet, or not known to be, once more."""
        if run.events > run.delivered + run.dropped and run.status in EVENTS:
            run.events -= 1
            self.announce(run)

    def _after(self, seconds: float, delivery: Delivery) -> None:
        self.counts["pending"] += 1
        if seconds <= 0:
            self._queue.put_nowait(delivery)
        else:
            asyncio.get_running_loop().call_later(seconds, self._queue.put_nowait, delivery)

    async def work(self) -> None:
        """Deliver, many at a time, for ever."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        connector = aiohttp.TCPConnector(limit=_WORKERS)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._worker(session) for _ in range(_WORKERS)))

    async def _worker(self, session: aiohttp.ClientSession) -> None:
        while True:
            delivery = await self._queue.get()
            self.counts["pending"] -= 1
            endpoint = self.endpoints.get(delivery.endpoint_id)
            if endpoint is None or endpoint["status"] != "enabled" or delivery.run.deleted:
                continue
            if await self._send(session, endpoint, delivery):
                self.counts["delivered"] += 1
                if not delivery.extra:
                    delivery.run.delivered += 1
                    self._store.later(run_write(delivery.run))
            else:
                self.counts["failed_attempts"] += 1
                self._retry(delivery)

    def _retry(self, delivery: Delivery) -> None:
        if delivery.attempt < ATTEMPTS:
            self._after(
                self._first_retry * 2 ** (delivery.attempt - 1), delivery._replace(attempt=delivery.attempt + 1)
            )
        elif not delivery.extra:
            delivery.run.dropped += 1
            self.counts["given_up"] += 1
            self._store.later(run_write(delivery.run))

    async def _send(self, session: aiohttp.ClientSession, endpoint: dict[str, Any], delivery: Delivery) -> bool:
        body = self._body(endpoint, delivery)
        stamp = str(int(time.time() + self._dice.faults.get("skew", 0.0)))
        signature = sign(endpoint["signingSecret"], stamp, body)
        if delivery.attempt == 1 and not delivery.extra and self._dice.strikes("corrupt", delivery.event_id):
            body = body.replace(b'"status"', b'"Status"', 1) if b'"status"' in body else body + b" "
        headers = {
            **((endpoint.get("advancedOptions") or {}).get("headers") or {}),
            "content-type": "application/json",
            "x-extend-request-timestamp": stamp,
            "x-extend-request-signature": signature,
        }
        try:
            async with session.post(endpoint["url"], data=body, headers=headers, allow_redirects=False) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _body(self, endpoint: dict[str, Any], delivery: Delivery) -> bytes:
        payload = self.payload(delivery.run, delivery.event_type, delivery.status)
        options = (endpoint.get("advancedOptions") or {}).get("payload") or {}
        # No threshold given: docs.extend.ai, webhooks/configuration, reads as if all were sent as links.
        if options.get("format") == "url" and len(payload) > options.get("urlThresholdBytes", -1):
            link = {
                "object": "signed_data_url",
                "data": self._link(delivery),
                "id": delivery.run.id,
                "metadata": msgspec.Raw(delivery.run.metadata),
            }
            payload = _encode(link)
        head = {"eventId": delivery.event_id, "eventType": delivery.event_type, "payload": msgspec.Raw(payload)}
        return _encode(head)

    def payload(self, run: Run, event_type: str, status: str) -> bytes:
        """The payload of an event: the run, as it was at the event's status, or one of its steps."""
        if event_type == STEP_EVENT:
            return _encode(render.step_runs(run, self._born)[-1])
        shown, run.status = run.status, status
        try:
            return _encode(render.run(run, self._born))
        finally:
            run.status = shown

    def _link(self, delivery: Delivery) -> str:
        expires = int(time.time() + LINK_LASTS)
        subject = f"{delivery.run.number}.{delivery.status}.{delivery.event_id}.{expires}"
        return f"{self.origin}/_signed/{subject}.{self._proof(subject)}"

    def _proof(self, subject: str) -> str:
        return hmac.new(self._link_key, subject.encode(), hashlib.sha256).hexdigest()

    def open_link(self, token: str, runs: list[Run]) -> bytes | None:
        """The payload behind a signed link; None where the link is wrong, expired, or made to fail."""
        subject, _, proof = token.rpartition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(subject).encode()):
            return None
        number, status, event_id, expires = subject.split(".")
        if time.time() > int(expires) or self._dice.strikes("url_expired", event_id):
            return None
        return self.payload(runs[int(number)], EVENTS[status], status)


def _event_id(run: Run, status: str) -> str:
    return "event_" + hashlib.blake2b(f"{run.id}/{status}/{run.generation}".encode(), digest_size=12).hexdigest()
