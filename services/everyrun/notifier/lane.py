"""Send the deliveries of one receiver. Each receiver has a lane of its own, so a slow or dead one delays no other.

A lane claims due deliveries, sends a limited number of them at a time, and stores their outcomes. Claims and outcomes
are stored for many deliveries at once. The requests go on meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import asyncpg
import msgspec

from everyrun.failpoints import hit
from everyrun.log.cloudevents import timestamp
from everyrun.notifier.metrics import Metrics
from everyrun.notifier.retrying import Outcome, next_state, pause, requests_at_once
from everyrun.notifier.transport import Target, Transport
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "notifier.sql")
#: Maximum number of deliveries that are claimed at once, and the seconds for which a claim may wait for its turn.
_MOST, _TURN = 100, 10.0
#: Added to a claim's time, in seconds: the time to store its outcome.
_MARGIN = 5.0
#: Maximum number of large bodies (those that were not read with their claims) that a lane holds in memory.
_LARGE = 2


class Claim(msgspec.Struct, frozen=True):
    """A delivery that this process may send now. ``attempts`` is the number of this attempt."""

    notification_id: str
    attempts: int
    seconds_left: float
    body: bytes | None
    at: float


class Ended(msgspec.Struct, frozen=True):
    """A request that has ended."""

    claim: Claim
    outcome: Outcome
    began: float


class Receiver(msgspec.Struct, frozen=True):
    """Describes the receiver of a lane. The circuit is open after many ``failures`` in a row."""

    receiver_id: str
    target: Target
    failures: int
    #: Seconds from ``read_at`` (monotonic time) until the receiver may get the next request.
    pause: float
    read_at: float

    @classmethod
    def of(cls, row: Any) -> Receiver:
        """Return the receiver of a row of the statement ``receivers``."""
        target = Target(row["url"], row["format"], row["secret"], row["previous_secret"], row["previous_until"])
        return cls(row["receiver_id"], target, row["failures"], row["pause"], time.monotonic())


class Lane:
    """Sends the deliveries of one receiver while some are due."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, transport: Transport, metrics: Metrics, receiver: Receiver
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._transport = transport
        self._metrics = metrics
        self.receiver = receiver
        self._claims: deque[Claim] = deque()
        self._running: set[asyncio.Task[Ended]] = set()
        self._ended: list[Ended] = []
        self._wake = asyncio.Event()
        self._large = asyncio.Semaphore(_LARGE)
        self._has_more = True
        #: Mean seconds of a request, which decides how many deliveries are claimed at once.
        self._usual = 1.0
        self._stopped = False

    def look(self, receiver: Receiver) -> None:
        """Take over the present state of the receiver, and look for due deliveries."""
        self.receiver = receiver
        self._has_more = True
        self._wake.set()

    def stop(self) -> None:
        """Begin no more requests. Those in progress end, and ``run`` then returns."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Send until nothing is due. Raises asyncpg's errors; what was claimed is then sent again later."""
        try:
            while True:
                # Store first, because failures decide how many requests may begin.
                if self._ended:
                    await self._store()
                if (wanted := self._wanted()) > 0:
                    await self._claim(wanted)
                self._start_requests()
                await self._release()
                if not self._ended and self._wanted() <= 0:
                    if not self._running:
                        return
                    await self._wake.wait()
                    self._wake.clear()
        finally:
            for task in self._running:
                task.cancel()

    def _at_once(self) -> int:
        """Return how many requests the receiver may get at a time now."""
        receiver = self.receiver
        if self._stopped or time.monotonic() < receiver.read_at + receiver.pause:
            return 0
        return requests_at_once(receiver.failures, self._settings.notify_at_once)

    def _wanted(self) -> int:
        """Return how many deliveries to claim now. A quick receiver's are claimed ahead, for half a second."""
        at_once = self._at_once()
        if not self._has_more or not at_once:
            return 0
        ahead = min(_MOST, int(at_once * 0.5 / self._usual)) if at_once > 1 else 0
        wanted = at_once + ahead - len(self._running) - len(self._claims)
        return wanted if wanted >= max(1, ahead // 2) else 0

    async def _claim(self, wanted: int) -> None:
        lease = self._settings.notify_timeout + _TURN + _MARGIN
        rows = await self._pool.fetch(_sql["claim"], self.receiver.receiver_id, wanted, lease)
        hit("sender.after_claim")
        now = time.monotonic()
        self._has_more = len(rows) == wanted
        self._claims.extend(Claim(r["notification_id"], r["attempts"], r["seconds_left"], r["body"], now) for r in rows)

    def _start_requests(self) -> None:
        while self._claims and len(self._running) < self._at_once() and not self._is_late(self._claims[0]):
            task = asyncio.create_task(self._send(self._claims.popleft()))
            self._running.add(task)
            task.add_done_callback(self._has_ended)

    def _is_late(self, claim: Claim) -> bool:
        return time.monotonic() - claim.at > _TURN

    def _has_ended(self, task: asyncio.Task[Ended]) -> None:
        self._running.discard(task)
        self._wake.set()
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            # Its claim ends in a while, and the delivery is then sent again.
            _log.warning(
                "cannot send a delivery; will retry", receiver=self.receiver.receiver_id, error=describe(error)
            )
            return
        ended = task.result()
        self._ended.append(ended)
        self._usual += 0.1 * (max(ended.outcome.seconds, 0.001) - self._usual)
        if ended.outcome.accepted:
            self._start_requests()

    async def _send(self, claim: Claim) -> Ended:
        began = time.time()
        if claim.body is not None:
            outcome = await self._transport.send(self.receiver.target, claim.notification_id, claim.body)
        else:
            async with self._large:
                body = await self._pool.fetchval(_sql["body"], claim.notification_id)
                outcome = await self._transport.send(self.receiver.target, claim.notification_id, body or b"")
        hit("sender.after_send")
        return Ended(claim, outcome, began)

    async def _store(self) -> None:
        ended, self._ended = self._ended, []
        rows = [stored(one, self._settings, random.random()) for one in ended]  # noqa: S311
        receiver = self.receiver
        await self._pool.execute(_sql["store_outcomes"], receiver.receiver_id, *map(list, zip(*rows, strict=True)))
        hit("sender.after_store")
        for row in rows:
            self._metrics.count(receiver.receiver_id, row[2])
        failed = [one.outcome for one in ended if not one.outcome.accepted]
        if len(failed) < len(ended):
            if receiver.failures:
                await self._pool.execute(_sql["has_succeeded"], receiver.receiver_id)
            self.receiver = msgspec.structs.replace(receiver, failures=0, pause=0.0)
        elif failed:
            await self._note_failures(failed)

    async def _note_failures(self, failed: Sequence[Outcome]) -> None:
        receiver, waits = self.receiver, (self._settings.notify_retry_first, self._settings.notify_retry_most)
        seconds = pause(receiver.failures + len(failed), *waits, random.random())  # noqa: S311
        failures = await self._pool.fetchval(
            _sql["has_failed"], receiver.receiver_id, len(failed), said(failed[-1]), seconds
        )
        self.receiver = msgspec.structs.replace(
            receiver, failures=failures or 0, pause=seconds, read_at=time.monotonic()
        )

    async def _release(self) -> None:
        """Give back claims whose turn did not come in time, or does not come because the receiver fails."""
        several = self._at_once() > 1
        late = [claim for claim in self._claims if not several or self._is_late(claim)]
        if late:
            self._claims = deque(claim for claim in self._claims if claim not in late)
            columns = [claim.notification_id for claim in late], [claim.attempts for claim in late]
            await self._pool.execute(_sql["release"], self.receiver.receiver_id, *columns)


State = Literal["delivered", "waiting", "given_up"]


def stored(ended: Ended, settings: Settings, chance: float) -> tuple[str, int, State, float, str]:
    """Return what to store of a request: id, attempt, state, seconds until it is due, and its log entry. Pure."""
    claim, outcome = ended.claim, ended.outcome
    after = next_state(
        outcome,
        claim.attempts,
        claim.seconds_left,
        first=settings.notify_retry_first,
        most=settings.notify_retry_most,
        chance=chance,
    )
    entry: dict[str, Any] = {
        "at": timestamp(datetime.fromtimestamp(ended.began, UTC)),
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
        "answer": outcome.answer,
        "error": outcome.error,
    }
    text = msgspec.json.encode(entry).decode().replace("\\u0000", "\\ufffd")
    return claim.notification_id, claim.attempts, after.state, after.seconds, text


def said(outcome: Outcome) -> str:
    """Return in words why a request failed. Pure."""
    if outcome.status is None:
        return outcome.error
    return f"answered {outcome.status}" + (f": {outcome.answer}" if outcome.answer else "")
