"""API tokens: made, revoked, looked up. Only a hash of each is kept, so a copy of the database lets nobody in.

A token is 256 random bits. Its hash is a plain SHA-256: salts and slow hashes protect what people choose, from a list
of which it could be guessed; 2^256 equally likely texts cannot be guessed, however fast each guess is checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import asyncpg
from msgspec import Struct

from everyrun.store.sql import beside

_sql = beside(__file__, "tokens.sql")

Scope = Literal["submit", "read", "operate"]

#: What a token may be for: handing inputs in; reading reports and results; an operator's decisions. None has another.
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: The tokens are read again when they were read so many seconds ago: a revocation counts from then on.
FRESH_FOR = 2.0
#: And, for one that is not known, after so many: a new token works at once, a flood of guesses is not one of queries.
UNKNOWN_FOR = 0.2


class Caller(Struct, frozen=True):
    """Who calls, and what they may do."""

    name: str
    scopes: frozenset[str]


class _Known(Struct, frozen=True):
    digest: bytes
    caller: Caller
    expires_at: datetime | None


def digest(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _id(token: str) -> str:
    """The part of a token that names it and is no secret."""
    return token.rpartition("_")[0]


async def create(
    connection: asyncpg.Connection, name: str, scopes: Collection[Scope], expires_at: datetime | None
) -> str:
    """Make a token and return it, ``ert_ID_SECRET``: it is shown this once, and kept nowhere."""
    token_id = "ert_" + secrets.token_hex(6)
    token = f"{token_id}_{secrets.token_hex(32)}"
    wanted = [scope for scope in SCOPES if scope in scopes]
    await connection.execute(_sql["create"], token_id, name, digest(token), wanted, datetime.now(UTC), expires_at)
    return token


async def every(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """All tokens without their hashes, newest first, also those that are revoked or expired."""
    found: list[asyncpg.Record] = await connection.fetch(_sql["all"])
    return found


async def revoke(connection: asyncpg.Connection, token_id: str) -> str | None:
    """Revoke a token by its id (``ert_...``, or the whole token); its name, None where there is none."""
    if token_id.count("_") > 1:
        token_id = _id(token_id)
    name: str | None = await connection.fetchval(_sql["revoke"], token_id)
    return name


class Tokens:
    """Who a token belongs to. ``bootstrap`` (EVERYRUN_API_TOKEN) has every scope, and needs no database."""

    def __init__(self, pool: asyncpg.Pool, bootstrap: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool: Any = pool
        self._bootstrap = digest(bootstrap) if bootstrap else None
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def caller(self, token: str) -> Caller | None:
        """Whose it is; None where it is unknown, expired or revoked, which no answer tells apart.

        Raises OSError or asyncpg's errors where the database does not answer: a revocation could be missed.
        """
        given = digest(token)
        if self._bootstrap is not None and hmac.compare_digest(given, self._bootstrap):
            return Caller("bootstrap", frozenset(SCOPES))
        await self._read(FRESH_FOR)
        known = self._known.get(_id(token))
        if known is None:
            await self._read(UNKNOWN_FOR)
            known = self._known.get(_id(token))
        if known is None or not hmac.compare_digest(given, known.digest):
            return None
        if known.expires_at is not None and known.expires_at <= datetime.now(UTC):
            return None
        return known.caller

    async def _read(self, fresh_for: float) -> None:
        async with self._reading:
            now = self._clock()
            if now - self._read_at < fresh_for:
                return
            rows = await self._pool.fetch(_sql["live"])
            self._known = {
                row["token_id"]: _Known(row["hash"], Caller(row["name"], frozenset(row["scopes"])), row["expires_at"])
                for row in rows
            }
            self._read_at = now
