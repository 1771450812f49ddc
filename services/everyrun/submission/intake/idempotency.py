"""Recognize repeated uploads by their Idempotency-Key, even if the key contains the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg

from everyrun.store.sql import beside

_sql = beside(__file__, "intake.sql")


class Recent(NamedTuple):
    """Another key of the same upload.

    ``lock`` is the part of the key that does not change. ``earlier_key`` is the key that the same upload would have had
    in the period before. The upload repeats the submission with that key if it was accepted within ``seconds``.
    """

    lock: str
    earlier_key: str
    seconds: float


async def is_known(pool: asyncpg.Pool, idempotency_key: str) -> bool:
    """Return True if a submission with this Idempotency-Key was accepted before."""
    return await pool.fetchrow(_sql["by_idempotency_key"], idempotency_key) is not None


async def key_of(connection: Any, key: str | None, recent: Recent | None) -> str | None:
    """Return the Idempotency-Key under which an upload is accepted.

    Of two equal uploads at once, the second waits until the transaction of the first has ended. So it finds the first,
    even if a new period has begun in between.
    """
    if recent is None:
        return key
    await connection.execute(_sql["lock_key"], recent.lock)
    since = datetime.now(UTC) - timedelta(seconds=recent.seconds)
    earlier: str | None = await connection.fetchval(_sql["recent_key"], recent.earlier_key, since)
    return earlier or key
