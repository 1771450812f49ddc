"""The request budget: in each category at most so many requests a second, whoever sends them.

Extend counts by organization, so all processes of an installation share one budget, kept in
``everyrun_queue.budgets``: a moment for each category at which the next request may go. A process takes as many turns
from there as it has requests waiting, up to a quarter of a second's, with one statement.
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

#: A process takes at most this many seconds' turns at once: so long it may overlook a pause that another one heard of.
SLICE = 0.25
#: A turn that nobody took for so long (its request was given up) is void, in seconds.
_STALE = 0.5
#: No pause is longer, whatever Extend says, in seconds.
LONGEST_PAUSE = 3600.0
#: How long Postgres may take for a lease, and how long it is then left alone, in seconds.
_ANSWER_WITHIN = 2.0
_LEAVE_ALONE = 1.0


class Turns(Protocol):
    """Where turns are taken from."""

    async def lease(self, category: str, count: int) -> list[float]:
        """Take up to ``count`` turns, at least one: in how many seconds each of them is."""

    async def pause(self, category: str, seconds: float) -> None:
        """No turn of the category is before so many seconds from now."""

    async def aclose(self) -> None:
        """Let go of what is held."""


class OwnTurns:
    """Turns of one process alone, at an even pace."""

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
        """Nothing is held."""


class SharedTurns:
    """Turns of the whole installation. While Postgres does not answer, each process keeps to a small share of its own.

    With a share of ``1 / n`` up to n processes stay within the rate without it.
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
            # One turn: by the next one Postgres may be back.
            return await self._alone.lease(category, 1)
        return [max(first, 0.0) + place * self._gap for place in range(count)]

    async def pause(self, category: str, seconds: float) -> None:
        """See Turns."""
        await self._alone.pause(category, seconds)
        await self._ask("pause", category, seconds)

    async def _ask(self, statement: str, *arguments: object) -> float | None:
        """The statement's value; None where there is none, or Postgres does not answer."""
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
                "the shared budget is away; a small share is kept to", error=f"{type(error).__name__}: {error}"
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
    """Lets requests through when it is their turn, in the order they came."""

    def __init__(self, turns: Turns, rate: float) -> None:
        self._turns = turns
        self._most = max(1, int(rate * SLICE))
        self._lanes = {category: _Lane() for category in (GET, WRITE, RUN)}

    async def turn(self, category: str) -> None:
        """Return when a request of the category may go."""
        lane = self._lanes[category]
        while True:
            await _until(lane.not_before)
            await self._next(lane, category)
            if lane.not_before <= time.monotonic():
                return

    async def _next(self, lane: _Lane, category: str) -> None:
        # The lock is held until the turn has come: so no more is leased while there are turns to be taken.
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
        """Extend asked for a pause: no request of the category goes before its end, from no process.

        Those of this process that wait for a turn wait on; another process may use what it has leased, a quarter of a
        second's turns.
        """
        seconds = min(seconds, LONGEST_PAUSE)
        lane = self._lanes[category]
        lane.turns.clear()
        lane.not_before = max(lane.not_before, time.monotonic() + seconds)
        await self._turns.pause(category, seconds)

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._turns.aclose()


def shared(settings: Settings) -> Budget:
    """The installation's budget, at the plan's rate."""
    return Budget(SharedTurns(settings), settings.rate())


async def _until(moment: float) -> None:
    await asyncio.sleep(max(moment - time.monotonic(), 0.0))
