"""Deliver webhooks as Extend does: signed, and retried with growing delays until a try succeeds or all tries failed."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

import aiohttp

from everyrun.emulator.faults import Dice
from everyrun.emulator.runs import EVENTS, STEP_EVENT, STEPS, WITH_STEPS, Run
from everyrun.emulator.store import Store, Write
from everyrun.emulator.webhook_content import Event, Links, body, corrupted, payload, sign
from everyrun.telemetry import log

#: Maximum number of tries. Extend documents only that the delays between tries grow exponentially.
ATTEMPTS = 5
#: A try succeeds if a 2xx answer arrives within this many seconds (docs.extend.ai, webhooks/best-practices).
TIMEOUT = 30.0
_WORKERS = 64
_log = log(__name__)


class Delivery(NamedTuple):
    """One event on its way to one endpoint.

    ``extra`` is 0 for the delivery itself, and 1, 2, … for the copies of it that a fault adds.
    """

    event: Event
    endpoint_id: str
    attempt: int
    extra: int


class Webhooks:
    """Sends events to the endpoints that have a subscription to the run's workflow.

    The store keeps each delivery until it succeeds or is given up. Each run counts its events (once per endpoint), how
    many of them were delivered, and how many never will be.
    """

    def __init__(self, store: Store, dice: Dice, links: Links, workflow_made_at: float, first_retry: float) -> None:
        self._store = store
        self._dice = dice
        self.links = links
        self._workflow_made_at = workflow_made_at
        self._first_retry = first_retry
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.endpoints: dict[str, dict[str, Any]] = store.documents("endpoint")
        self.subscriptions: dict[str, dict[str, Any]] = store.documents("subscription")
        zero = {"delivered": 0, "failed_attempts": 0, "dropped": 0, "given_up": 0}
        self.counts: dict[str, int] = {**zero, **store.documents("counter").get("webhooks", {}), "pending": 0}

    def resume(self, runs: list[Run]) -> None:
        """Schedule the deliveries that were pending when the emulator stopped, at the times at which they are due."""
        now = time.time()
        for event_id, endpoint_id, extra, number, generation, step, attempt, due in self._store.deliveries():
            event = Event(event_id, runs[number], generation, step)
            self._put(Delivery(event, endpoint_id, attempt, extra), due - now)

    def announce(self, run: Run) -> None:
        """Send the event for the run's present status, and the events of its steps, to the endpoints that want them."""
        for subscription in self.subscriptions.values():
            if subscription["resourceType"] != "workflow" or subscription["resourceId"] != run.workflow_id:
                continue
            wanted = subscription["enabledEvents"]
            if STEP_EVENT in wanted and run.status in WITH_STEPS and run.generation == 0:
                for step in range(len(STEPS)):
                    self._announce(Event.of(run, step), subscription["webhookEndpointId"])
            if EVENTS.get(run.status) in wanted:
                self._announce(Event.of(run), subscription["webhookEndpointId"])

    def _announce(self, event: Event, endpoint_id: str) -> None:
        dice = self._dice
        event.run.events += 1
        self._store.changed(event.run)
        if dice.strikes("drop", event.id):
            event.run.dropped += 1
            self.counts["dropped"] += 1
            return
        wait = dice.seconds("delay", event.id)
        if dice.strikes("reorder", event.id):
            wait += 0.3 + 1.2 * dice.number("overtaken", event.id)
        if dice.strikes("late", event.id):
            wait += self._first_retry * 2**ATTEMPTS
        self._after(wait, Delivery(event, endpoint_id, 1, 0))
        for extra in range(1, 1 + dice.count("copies") + dice.strikes("duplicate", event.id)):
            later = wait + 1.5 * dice.number("again", f"{event.id}/{extra}")
            self._after(later, Delivery(event, endpoint_id, 1, extra))

    def _after(self, seconds: float, delivery: Delivery) -> None:
        event = delivery.event
        key = (event.id, delivery.endpoint_id, delivery.extra)
        row = (*key, event.run.number, event.generation, event.step, delivery.attempt, time.time() + seconds)
        self._store.enqueue(("insert or replace into deliveries values (?, ?, ?, ?, ?, ?, ?, ?)", row))
        self._put(delivery, seconds)

    def _put(self, delivery: Delivery, seconds: float) -> None:
        self.counts["pending"] += 1
        if seconds <= 0:
            self._queue.put_nowait(delivery)
        else:
            asyncio.get_running_loop().call_later(seconds, self._queue.put_nowait, delivery)

    async def deliver(self) -> None:
        """Deliver webhooks concurrently, forever."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        connector = aiohttp.TCPConnector(limit=_WORKERS)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._worker(session) for _ in range(_WORKERS)))

    async def _worker(self, session: aiohttp.ClientSession) -> None:
        while True:
            delivery = await self._queue.get()
            endpoint = self.endpoints.get(delivery.endpoint_id)
            if endpoint is None or endpoint["status"] != "enabled" or delivery.event.run.deleted:
                self._done(delivery, "dropped")
            elif await self._send(session, endpoint, delivery):
                self._done(delivery, "delivered")
            elif delivery.attempt < ATTEMPTS:
                self.counts["failed_attempts"] += 1
                self.counts["pending"] -= 1
                later = delivery._replace(attempt=delivery.attempt + 1)
                self._after(self._first_retry * 2 ** (delivery.attempt - 1), later)
            else:
                self.counts["failed_attempts"] += 1
                self._done(delivery, "given_up")

    def _done(self, delivery: Delivery, how: str) -> None:
        self.counts["pending"] -= 1
        self.counts[how] += 1
        if not delivery.extra:
            run = delivery.event.run
            if how == "delivered":
                run.delivered += 1
            else:
                run.dropped += 1
            self._store.changed(run)
        self._store.enqueue(_delete_write(delivery))

    async def _send(self, session: aiohttp.ClientSession, endpoint: dict[str, Any], delivery: Delivery) -> bool:
        event = delivery.event
        options = endpoint.get("advancedOptions") or {}
        content = body(event, self._workflow_made_at, self._dice.clock_offset, options.get("payload") or {}, self.links)
        stamp = str(int(time.time() + self._dice.clock_offset))
        headers = {
            **(options.get("headers") or {}),
            "content-type": "application/json",
            "x-extend-request-timestamp": stamp,
            "x-extend-request-signature": sign(endpoint["signingSecret"], stamp, content),
        }
        if delivery.attempt == 1 and not delivery.extra and self._dice.strikes("corrupt", event.id):
            content = corrupted(content)
        try:
            async with session.post(endpoint["url"], data=content, headers=headers, allow_redirects=False) as response:
                await response.read()
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        except Exception:
            # An endpoint whose URL or headers cannot be used must not end the worker.
            _log.exception("the webhook could not be sent", endpoint=endpoint["id"])
            return False

    def open_link(self, token: str, runs: list[Run]) -> bytes | None:
        """Return the payload behind a signed link, by the link's token.

        Return None if the token is wrong or has expired, the run was deleted, or the fault ``url_expired`` strikes.
        """
        found = self.links.read(token, time.time())
        if found is None:
            return None
        number, generation, step, event_id = found
        if self._dice.strikes("url_expired", event_id) or runs[number].deleted:
            return None
        return payload(Event(event_id, runs[number], generation, step), self._workflow_made_at, self._dice.clock_offset)


def _delete_write(delivery: Delivery) -> Write:
    key = (delivery.event.id, delivery.endpoint_id, delivery.extra)
    return "delete from deliveries where event_id = ? and endpoint_id = ? and extra = ?", key
