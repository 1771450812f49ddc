"""Wait for Postgres at the start. Then check that it answers, over a separate connection and with a short timeout."""

from __future__ import annotations

import asyncio

import asyncpg

from everyrun.health import Health
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, open_pool, write_problem
from everyrun.store.session import PoolerError, connect

#: Interval and timeout of the check, in seconds. A frozen server, which accepts connections but never answers, is
#: detected within the sum of both.
_EVERY, _WITHIN = 2.0, 5.0


class Probe:
    """Checks Postgres over a connection of its own.

    It does not use the pool, because all connections of the pool may be busy, or wait a minute for a frozen server.
    """

    def __init__(self, settings: Settings, *, name: str, writes: bool) -> None:
        self._dsn = settings.postgres_dsn.get_secret_value()
        self._name = name
        self._writes = writes
        self._connection: asyncpg.Connection | None = None

    async def problem(self) -> str | None:
        """Return why Postgres cannot be used now, or None if it can. Takes at most a few seconds, and raises no error.

        If ``writes`` is set, a read-only database counts as a problem.
        """
        try:
            async with asyncio.timeout(_WITHIN):
                connection = self._connection or await self._connected()
                if self._writes:
                    return await write_problem(connection)
                await connection.fetchval("select 1")
                return None
        except TimeoutError:
            self.close()
            return f"no answer within {_WITHIN:g} s"
        except (*POSTGRES_AWAY, PoolerError) as error:
            self.close()
            return describe(error)
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection without waiting for the server."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connected(self) -> asyncpg.Connection:
        self._connection = await connect(self._dsn, name=f"{self._name}-probe")
        return self._connection


async def open_pool_when_up(settings: Settings, health: Health, *, name: str, max_size: int) -> asyncpg.Pool:
    """Open a pool as ``open_pool`` does. While Postgres is unavailable, report that in readyz, and try again."""
    while True:
        try:
            return await open_pool(settings, name=name, max_size=max_size)
        except POSTGRES_AWAY as error:
            health.not_ready("database", f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.5)


async def keep_probing(settings: Settings, health: Health, part: str, *, name: str, writes: bool = True) -> None:
    """Check Postgres regularly, for ever, and report the result in readyz under the name ``part``."""
    probe = Probe(settings, name=name, writes=writes)
    try:
        while True:
            problem = await probe.problem()
            if problem is None:
                health.ready(part)
            else:
                health.not_ready(part, problem)
            await asyncio.sleep(_EVERY)
    finally:
        probe.close()
