"""Limit how many slow reads run at the same time.

Without that limit, slow reads could take all connections to Postgres, and none would remain for checking tokens, for
readyz and for short reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from everyrun.errors import Unavailable

#: How many slow reads one gate lets run at the same time. Reports have one gate,
#: pages of results another, and exports a third.
AT_A_TIME = 3
#: How long a read waits for its turn before it is refused, in seconds.
PATIENCE = 10.0


class BusyError(Unavailable):
    """A slow read was refused because it got no turn in time. The text names the kind of read."""

    code = "BUSY"
    retry_after = 5


class Gate:
    """Lets only AT_A_TIME slow reads of one kind run at the same time. ``what`` names the kind, for the error."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._turns = asyncio.Semaphore(AT_A_TIME)

    @asynccontextmanager
    async def turn(self, *, patient: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs.

        Raises BusyError if none becomes free within PATIENCE seconds, unless the caller is ``patient``.
        """
        try:
            await asyncio.wait_for(self._turns.acquire(), None if patient else PATIENCE)
        except TimeoutError:
            raise BusyError(f"{AT_A_TIME} {self._what} are in progress; retry later") from None
        try:
            yield
        finally:
            self._turns.release()
