"""Give each receiver with due deliveries a lane, and clean up old deliveries."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import asyncpg

from everyrun.notifier.lane import Lane, Receiver
from everyrun.notifier.metrics import Metrics
from everyrun.notifier.transport import Transport
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "notifier.sql")
#: Seconds between two looks for due deliveries, if nothing wakes the sender before; and the same without receivers.
_EVERY, _EVERY_WITHOUT = 1.0, 5.0


class Sender:
    """Runs the lanes of all receivers."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, transport: Transport, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._transport = transport
        self._metrics = metrics
        self._lanes: dict[str, Lane] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: Set this to make the sender look for due deliveries at once.
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Send forever. Raises asyncpg's errors."""
        while True:
            has_receivers = await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), _EVERY if has_receivers else _EVERY_WITHOUT)
            self.wake.clear()

    async def look(self) -> bool:
        """Start or wake the lane of each receiver with due deliveries. Return False if there is no receiver.

        Raises asyncpg's errors.
        """
        rows = {row["receiver_id"]: row for row in await self._pool.fetch(_sql["receivers"])}
        for receiver_id in [each for each, task in self._tasks.items() if task.done()]:
            self._forget(receiver_id)
        for receiver_id, lane in self._lanes.items():
            if receiver_id not in rows or rows[receiver_id]["state"] != "active":
                lane.stop()
        for receiver_id, row in rows.items():
            if row["is_due"] and receiver_id in self._lanes:
                self._lanes[receiver_id].look(Receiver.of(row))
            elif row["is_due"]:
                lane = Lane(self._settings, self._pool, self._transport, self._metrics, Receiver.of(row))
                self._lanes[receiver_id] = lane
                self._tasks[receiver_id] = asyncio.create_task(lane.run())
        return bool(rows)

    def _forget(self, receiver_id: str) -> None:
        """Forget a lane that has ended. An error ends only this lane; the next look starts another."""
        task = self._tasks.pop(receiver_id)
        del self._lanes[receiver_id]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            expected = isinstance(error, POSTGRES_AWAY)
            _log.warning(
                "sending to a receiver stopped; will retry",
                receiver=receiver_id,
                error=describe(error),
                exc_info=None if expected else error,
            )

    async def stop(self, within: float) -> None:
        """Let requests in progress end for at most ``within`` seconds, and begin no more."""
        for lane in self._lanes.values():
            lane.stop()
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks.values(), timeout=within)
            for task in unfinished:
                task.cancel()


async def clean_up(settings: Settings, pool: asyncpg.Pool, metrics: Metrics) -> None:
    """Give up deliveries whose time has passed, and delete what need not be kept. Raises asyncpg's errors."""
    while given_up := await pool.fetch(_sql["give_up_late"]):
        for receiver_id, number in Counter(row["receiver_id"] for row in given_up).items():
            metrics.count_given_up(receiver_id, number)
            _log.warning("gave up deliveries that were retried for too long", receiver=receiver_id, number=number)
    await _until_none(pool, "delete_old_deliveries", settings.notify_kept)
    await _until_none(pool, "delete_deliveries_of_removed")
    await _until_none(pool, "delete_old_notifications", settings.notify_kept)
    await pool.execute(_sql["delete_removed_receivers"])
    await pool.execute(_sql["forget_previous_secrets"])


async def _until_none(pool: asyncpg.Pool, statement: str, *args: float) -> None:
    while not (await pool.execute(_sql[statement], *args)).endswith(" 0"):
        pass
