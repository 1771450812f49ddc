"""Open pools of connections to Postgres, and distinguish slow statements from outages."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import asyncpg
import msgspec

from everyrun.settings import Settings
from everyrun.store.session import Session, ended_by, preparing
from everyrun.store.sql import name_of

_json = msgspec.json.Encoder()


async def connection_setup(connection: asyncpg.Connection) -> None:
    """Make the connection convert jsonb to and from Python values."""
    await connection.set_type_codec(
        "jsonb", encoder=lambda value: _json.encode(value).decode(), decoder=msgspec.json.decode, schema="pg_catalog"
    )


async def write_problem(connection: Any) -> str | None:
    """Return why the database is read-only (a standby, or ``default_transaction_read_only``), or None if it is not."""
    if await connection.fetchval("select pg_is_in_recovery()"):
        return "the database is a standby, which is read-only"
    if await connection.fetchval("select current_setting('transaction_read_only')::bool"):
        return "the database is read-only: default_transaction_read_only is on"
    return None


class SlowStatementError(asyncpg.QueryCanceledError):
    """A statement took too long, though Postgres answers other statements. Only the step that ran it should fail."""


def is_slow(error: BaseException) -> bool:
    """Return True if an error means that a statement took too long, and not that Postgres is unavailable.

    Retry such an error like the other errors in POSTGRES_AWAY, but do not report it as an outage.
    """
    return isinstance(error, asyncpg.QueryCanceledError)


#: Timeout of the check that Postgres answers, in seconds.
_ANSWER_WITHIN = 5.0


async def _answers(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=_ANSWER_WITHIN, command_timeout=_ANSWER_WITHIN)
        try:
            await connection.fetchval("select 1")
        finally:
            connection.terminate()
    except asyncpg.PostgresError:
        return True
    except (OSError, asyncpg.InterfaceError):
        return False
    return True


def _naming_slow(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def called(self: Any, statement: str, *args: Any, **options: Any) -> Any:
        try:
            return await method(self, statement, *args, **options)
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            if isinstance(error, SlowStatementError):
                raise
            # A server that canceled a statement is available. After a timeout, check whether the server answers at all.
            if isinstance(error, TimeoutError) and not await _answers(self.dsn):
                raise
            setting = ended_by(error)
            ended = f"Postgres ended it because of {setting}" if setting else "Postgres answers other statements"
            raise SlowStatementError(f"the statement {name_of(statement)} took too long; {ended}") from error

    return called


_METHODS = ("execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_to_table", "copy_records_to_table")


def connection_naming_slow(dsn: str) -> type[asyncpg.Connection]:
    """Return a connection class that raises SlowStatementError for a slow statement, with the statement's name.

    asyncpg's own class raises TimeoutError for a slow statement. Callers treat TimeoutError, which is an OSError, as an
    outage of Postgres. So the returned class raises TimeoutError only in an outage: if Postgres at ``dsn`` does not
    answer on another connection either.
    """
    methods = {name: _naming_slow(getattr(asyncpg.Connection, name)) for name in _METHODS}
    return type("ConnectionNamingSlow", (Session,), {**methods, "dsn": dsn})


#: Errors after which callers retry later: Postgres is unavailable, or a statement took too long (see ``is_slow``).
#: asyncpg raises InternalClientError if a connection is lost during a COPY, or while the connection is returned to the
#: pool.
POSTGRES_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


async def open_pool(
    settings: Settings,
    *,
    name: str,
    min_size: int = 1,
    max_size: int = 10,
    command_timeout: float | None = 60,
    own: Mapping[str, str] | None = None,
    setup: Callable[[asyncpg.Connection], Awaitable[None]] = connection_setup,
) -> asyncpg.Pool:
    """Return a pool of connections to EVERYRUN_POSTGRES_DSN; ``name`` is shown in pg_stat_activity.

    Each session gets the settings in ``own``. Timeouts that the role, the database or the server has set
    (:data:`everyrun.store.session.LIMITS`) do not apply to it. ``setup`` sets the type codecs; the default one converts
    jsonb to Python values.

    Raises PoolerError if a pooler without sessions is in between. Raises OSError or asyncpg.PostgresError if no
    connection can be opened.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    pool: asyncpg.Pool = await asyncpg.create_pool(
        dsn,
        min_size=min_size,
        max_size=max_size,
        init=preparing(dsn, own or {}, setup),
        connection_class=connection_naming_slow(dsn),
        command_timeout=command_timeout,
        server_settings={"application_name": f"everyrun-{name}"},
    )
    return pool
