"""Count the inputs that have settled, so that the sending window has room for others."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "queue.sql")
#: While no chunk is ready to be sent, settled inputs are counted this often, in seconds. The count matters only to
#: chunks that are ready.
_IDLE = 15.0
#: The count may take at most this share of the time. So it is made less often if very many chunks are open.
_SHARE = 0.1


class SettledInputs:
    """Count settled inputs for the sending window. Several processes may do this at the same time."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, dispatch_wake: asyncio.Event) -> None:
        self._settings = settings
        self._pool = pool
        self._dispatch_wake = dispatch_wake
        self._counted_at = -_IDLE
        self._rest_until = 0.0

    async def count(self) -> int:
        """Count if it is time to; return how many chunks have more settled inputs than before. Call this once a second.

        If there are any, the idle workers are woken. Raises asyncpg's errors.
        """
        began = time.monotonic()
        if began < self._rest_until:
            return 0
        if began < self._counted_at + _IDLE and not await self._pool.fetchval(_sql["chunks_are_ready"]):
            return 0
        changed: int = await self._pool.fetchval(_sql["count_settled"], self._settings.poll_for)
        self._counted_at = time.monotonic()
        self._rest_until = self._counted_at + (self._counted_at - began) / _SHARE
        if changed:
            self._dispatch_wake.set()
        return changed
