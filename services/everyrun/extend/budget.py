"""Limit the requests to Extend per second, by category, for all processes of the installation together.

Extend limits the requests of an organization, so all processes share one budget in the table
``everyrun_queue.budgets``. The table holds, for each category, the time at which the next request may be sent. With one
statement, a process leases a turn for each of its waiting requests, but at most the turns of a quarter of a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import asyncpg

from everyrun import telemetry
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, open_pool
from everyrun.store.sql import beside

GET, WRITE, RUN = "GET", "WRITE", "RUN"

_log = telemetry.log(__name__)
_sql = beside(__file__, "budget.sql")

#: Maximum length of a lease, in seconds. If Extend asks one process for a pause, another process may keep sending
#: for this long, because it uses the turns that it has already leased.
SLICE = 0.25
#: An unused turn is dropped if it is more than this many seconds old: the request that it was leased for was given up.
_STALE = 0.5
#: Longest pause, in seconds, even if Extend asks for more.
LONGEST_PAUSE = 3600.0
#: The timeout of a statement, and how long Postgres is left alone after a failed statement, both in seconds.
_ANSWER_WITHIN = 2.0
_LEAVE_ALONE = 1.0


class Turns(Protocol):
    """A source of turns. A turn is the time at which one request may be sent."""

    async def lease(self, category: str, count: int) -> list[float]:
        """Take up to ``count`` turns, and at least one. Return the number of seconds until each turn."""

    async def pause(self, category: str, seconds: float) -> None:
        """Give out no turn of the category for this many seconds."""

    async def aclose(self) -> None:
        """Close connections."""


class OwnTurns:
    """Turns of a single process, evenly spaced."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 1.0 / rate
        self._clock = clock
        self._free: dict[str, float] = {}

    async def lease(self, category: str, count: int) -> list[float]:
        """See Turns."""
        now = self._clock()
        first = max(self._free.get(category, now), now)
        self._free[category] = first + count * self._gap
        return [first - now + place * self._gap for place in range(count)]

    async def pause(self, category: str, seconds: float) -> None:
        """See Turns."""
        self._free[category] = max(self._free.get(category, 0.0), self._clock() + seconds)

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""


class SharedTurns:
    """Turns of the whole installation. While Postgres does not answer, each process sends at a small share of the rate.

    If the share is ``1 / n``, up to n processes together stay within the rate even without Postgres.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gap = 1.0 / settings.rate()
        self._alone = OwnTurns(settings.rate() * settings.budget_share)
        self._pool: asyncpg.Pool | None = None
        self._away_until = 0.0
        self._connecting = asyncio.Lock()

    async def lease(self, category: str, count: int) -> list[float]:
        """See Turns."""
        first = await self._ask("lease", category, count * self._gap, LONGEST_PAUSE)
        if first is None:
            # Take only one turn at a time, because Postgres may be available for the next one.
            return await self._alone.lease(category, 1)
        return [max(first, 0.0) + place * self._gap for place in range(count)]

    async def pause(self, category: str, seconds: float) -> None:
        """See Turns."""
        await self._alone.pause(category, seconds)
        await self._ask("pause", category, seconds)

    async def _ask(self, statement: str, *arguments: object) -> float | None:
        """Return the statement's value, or None if it returns no row or Postgres does not answer."""
        if time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                pool = await self._connected()
                value: float | None = await pool.fetchval(_sql[statement], *arguments)
                return value
        except POSTGRES_AWAY as error:
            self._away_until = time.monotonic() + _LEAVE_ALONE
            _log.warning(
                "the shared budget is unavailable; using a small share", error=f"{type(error).__name__}: {error}"
            )
            return None

    async def _connected(self) -> asyncpg.Pool:
        async with self._connecting:
            if self._pool is None:
                self._pool = await open_pool(self._settings, name="budget", min_size=0, max_size=1)
            return self._pool

    async def aclose(self) -> None:
        """Close the connection."""
        if self._pool is not None:
            self._pool.terminate()


class _Lane:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
        self.turns: deque[float] = deque()
        self.not_before = 0.0


class Budget:
    """Lets requests through at their turn, in the order of arrival."""

    def __init__(self, turns: Turns, rate: float) -> None:
        self._turns = turns
        self._most = max(1, int(rate * SLICE))
        self._lanes = {category: _Lane() for category in (GET, WRITE, RUN)}

    async def turn(self, category: str) -> None:
        """Wait until a request of the category may be sent."""
        lane = self._lanes[category]
        while True:
            await _until(lane.not_before)
            await self._next(lane, category)
            if lane.not_before <= time.monotonic():
                return

    async def _next(self, lane: _Lane, category: str) -> None:
        # Hold the lock until the turn has come, so that other requests lease no more turns while some are left.
        lane.waiting += 1
        try:
            async with lane.lock:
                while lane.turns and lane.turns[0] < time.monotonic() - _STALE:
                    lane.turns.popleft()
                if not lane.turns:
                    waits = await self._turns.lease(category, min(lane.waiting, self._most))
                    now = time.monotonic()
                    lane.turns.extend(now + wait for wait in waits)
                await _until(lane.turns.popleft())
        finally:
            lane.waiting -= 1

    async def pause(self, category: str, seconds: float) -> None:
        """Send no request of the category for this many seconds, from any process: Extend asked for it.

        Requests of this process that are waiting for a turn wait until after the pause. Another process may still use
        the turns that it has already leased, for up to a quarter of a second.
        """
        seconds = min(seconds, LONGEST_PAUSE)
        lane = self._lanes[category]
        lane.turns.clear()
        lane.not_before = max(lane.not_before, time.monotonic() + seconds)
        await self._turns.pause(category, seconds)

    async def aclose(self) -> None:
        """Close the connection to Postgres."""
        await self._turns.aclose()


def shared(settings: Settings) -> Budget:
    """Return the installation's budget, at the rate of its plan."""
    return Budget(SharedTurns(settings), settings.rate())


async def _until(moment: float) -> None:
    await asyncio.sleep(max(moment - time.monotonic(), 0.0))
