"""Create, revoke and check API tokens. Only the hash of a token is stored, so a copy of the database gives no access.

The hash is a plain SHA-256. Salts and slow hashes protect passwords that people choose, because such passwords can be
guessed from a list. A token needs neither: it has 256 random bits, so it cannot be guessed, even at great speed.
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

#: What a token allows. submit: submit inputs; read: read reports and results; operate: make an operator's decisions. No
#: scope includes another scope.
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: Maximum age in seconds of the tokens in memory. After that, they are read again, so that a revocation takes effect.
FRESH_FOR = 2.0
#: Maximum age in seconds of the tokens in memory if a request brings a token that is not among them. It is short, so
#: that a new token works at once, but not 0, so that a flood of guesses does not cause a flood of queries.
UNKNOWN_FOR = 0.2


class Caller(Struct, frozen=True):
    """The caller of a request: the token's name and scopes."""

    name: str
    scopes: frozenset[str]


class Revoked(Struct, frozen=True):
    """A revoked token.

    ``already`` is True if it had been revoked earlier. The reason of the first revocation is then kept.
    """

    name: str
    already: bool


class RevocationsUnknownError(Unavailable):
    """The database was restarted or replaced, and the revocations have not been read from the log yet.

    Until they are, no token of the database is accepted. EVERYRUN_API_TOKEN is not affected.
    """

    retry_after = 2


class _Known(Struct, frozen=True):
    digest: bytes
    caller: Caller
    expires_at: datetime | None


def digest(token: str) -> bytes:
    """Return the hash of a token, which is what the database stores."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _id(token: str) -> str:
    """Return the id of a token, which is not secret."""
    return token.rpartition("_")[0]


async def create(
    connection: asyncpg.Connection, name: str, scopes: Collection[Scope], expires_at: datetime | None, by: str
) -> str:
    """Create a token and return it (``ert_ID_SECRET``). The caller must show it now, because its text is not stored.

    The submission service then publishes ``token-created``, which names ``by`` as the creator of the token.
    """
    token_id = "ert_" + secrets.token_hex(6)
    token = f"{token_id}_{secrets.token_hex(32)}"
    wanted = [scope for scope in SCOPES if scope in scopes]
    await connection.execute(_sql["create"], token_id, name, digest(token), wanted, datetime.now(UTC), expires_at, by)
    return token


async def every(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """Return all tokens without their hashes, newest first, including revoked and expired ones."""
    found: list[asyncpg.Record] = await connection.fetch(_sql["all"])
    return found


async def revoke(connection: asyncpg.Connection, token_id: str, by: str, reason: str) -> Revoked | None:
    """Revoke a token by its id (``ert_...``) or its whole text. Return None if there is no such token.

    Services refuse the token within FRESH_FOR seconds. The submission service then publishes ``token-revoked``. This
    event keeps the token revoked even if the database is restored from an older backup; see ``revocation_is_logged``.
    """
    row = await connection.fetchrow(_sql["revoke"], _id_of(token_id), by, reason)
    return None if row is None else Revoked(row["name"], row["was_revoked"])


async def revocation_is_logged(connection: asyncpg.Connection, token_id: str) -> bool:
    """Return True if the log holds the revocation of a token, so that no restored backup can undo it."""
    return bool(await connection.fetchval(_sql["is_announced"], _id_of(token_id)))


def _id_of(given: str) -> str:
    return _id(given) if given.count("_") > 1 else given


class Tokens:
    """Checks tokens. The token ``bootstrap`` (EVERYRUN_API_TOKEN) has every scope, and needs no database."""

    def __init__(self, pool: asyncpg.Pool, bootstrap: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool: Any = pool
        self._bootstrap = digest(bootstrap) if bootstrap else None
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._caught_up = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def caller(self, token: str) -> Caller | None:
        """Return the caller of a token, or None if it is unknown, expired or revoked.

        A response must not tell which of the three it is. Raises OSError or asyncpg's errors if the database does not
        answer. Raises RevocationsUnknownError if the database may have been restored from an older backup, in which a
        revocation may be missing.
        """
        given = digest(token)
        if self._bootstrap is not None and hmac.compare_digest(given, self._bootstrap):
            return Caller("bootstrap", frozenset(SCOPES))
        await self._read(FRESH_FOR)
        known = self._known.get(_id(token))
        if known is None or not self._caught_up:
            await self._read(UNKNOWN_FOR)
            known = self._known.get(_id(token))
        if not self._caught_up:
            raise RevocationsUnknownError(
                "the database was restarted or replaced, and the submission service has not yet read from the log "
                "which tokens were revoked; retry in a moment"
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
            self._caught_up = all(row["caught_up"] for row in rows)
            self._known = {
                row["token_id"]: _Known(row["hash"], Caller(row["name"], frozenset(row["scopes"])), row["expires_at"])
                for row in rows
                if row["token_id"] is not None
            }
            self._read_at = now
