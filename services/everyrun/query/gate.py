"""How many slow reads run at a time: whoever asks for them, connections are left for tokens, readyz and short reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from everyrun.errors import Unavailable

#: Of the service's connections, so many may be busy with reports, and as many with pages of results.
AT_A_TIME = 3
#: So long it is waited for a turn, in seconds.
PATIENCE = 10.0


class BusyError(Unavailable):
    """As many as may run at a time have run for all of PATIENCE; the text says of what."""

    code = "BUSY"
    retry_after = 5


class Gate:
    """A turn for at most AT_A_TIME callers."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._turns = asyncio.Semaphore(AT_A_TIME)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a turn while the block runs. Raises BusyError where none came free in time."""
        try:
            await asyncio.wait_for(self._turns.acquire(), PATIENCE)
        except TimeoutError:
            raise BusyError(f"{AT_A_TIME} {self._what} are being made; try again") from None
        try:
            yield
        finally:
            self._turns.release()
