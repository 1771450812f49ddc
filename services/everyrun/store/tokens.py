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

from everyrun.errors import Unavailable
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


class NotLevelError(Unavailable):
    """Revocations were not read from the log since the database was restarted or replaced: no token is valid yet."""

    retry_after = 2


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
    connection: asyncpg.Connection, name: str, scopes: Collection[Scope], expires_at: datetime | None, by: str
) -> str:
    """Make a token and return it, ``ert_ID_SECRET``: it is shown this once, and kept nowhere.

    The submission service publishes ``token-created`` soon after, with ``by`` as the one who made it.
    """
    token_id = "ert_" + secrets.token_hex(6)
    token = f"{token_id}_{secrets.token_hex(32)}"
    wanted = [scope for scope in SCOPES if scope in scopes]
    await connection.execute(_sql["create"], token_id, name, digest(token), wanted, datetime.now(UTC), expires_at, by)
    return token


async def every(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """All tokens without their hashes, newest first, also those that are revoked or expired."""
    found: list[asyncpg.Record] = await connection.fetch(_sql["all"])
    return found


async def revoke(connection: asyncpg.Connection, token_id: str, by: str, reason: str) -> str | None:
    """Revoke a token by its id (``ert_...``, or the whole token); its name, None where there is none.

    No service accepts it from now on. The submission service publishes ``token-revoked`` soon after, which keeps it
    revoked in a database that is restored from an older backup: see ``is_durable``.
    """
    name: str | None = await connection.fetchval(_sql["revoke"], _id_of(token_id), by, reason)
    return name


async def is_durable(connection: asyncpg.Connection, token_id: str) -> bool:
    """Return whether the log has the revocation of a token."""
    return bool(await connection.fetchval(_sql["is_announced"], _id_of(token_id)))


def _id_of(given: str) -> str:
    return _id(given) if given.count("_") > 1 else given


class Tokens:
    """Who a token belongs to. ``bootstrap`` (EVERYRUN_API_TOKEN) has every scope, and needs no database."""

    def __init__(self, pool: asyncpg.Pool, bootstrap: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool: Any = pool
        self._bootstrap = digest(bootstrap) if bootstrap else None
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._level = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def caller(self, token: str) -> Caller | None:
        """Whose it is; None where it is unknown, expired or revoked, which no answer tells apart.

        Raises OSError or asyncpg's errors where the database does not answer, and NotLevelError where it may be an
        older one: a revocation could be missed.
        """
        given = digest(token)
        if self._bootstrap is not None and hmac.compare_digest(given, self._bootstrap):
            return Caller("bootstrap", frozenset(SCOPES))
        await self._read(FRESH_FOR)
        known = self._known.get(_id(token))
        if known is None or not self._level:
            await self._read(UNKNOWN_FOR)
            known = self._known.get(_id(token))
        if not self._level:
            raise NotLevelError(
                "the database was restarted or replaced, and the submission service has not yet read from the log "
                "which tokens were revoked; try again in a moment"
            )
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
            self._level = all(row["level"] for row in rows)
            self._known = {
                row["token_id"]: _Known(row["hash"], Caller(row["name"], frozenset(row["scopes"])), row["expires_at"])
                for row in rows
                if row["token_id"] is not None
            }
            self._read_at = now
