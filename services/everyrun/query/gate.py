"""Limit how many slow reads run at the same time, so that connections are left for tokens, readyz and short reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from everyrun.errors import Unavailable

#: Slow reads that run at the same time behind one gate. Reports have a gate, and pages of results another.
AT_A_TIME = 3
#: Longest wait for a turn, in seconds.
PATIENCE = 10.0


class BusyError(Unavailable):
    """No turn became free in time; the text names the kind of read."""

    code = "BUSY"
    retry_after = 5


class Gate:
    """Lets AT_A_TIME callers in at the same time."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._turns = asyncio.Semaphore(AT_A_TIME)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a turn while the block runs. Raises BusyError if none becomes free within PATIENCE."""
        try:
            await asyncio.wait_for(self._turns.acquire(), PATIENCE)
        except TimeoutError:
            raise BusyError(f"{AT_A_TIME} {self._what} are in progress; retry later") from None
        try:
            yield
        finally:
            self._turns.release()
