"""Connections to Postgres."""

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
    """jsonb comes and goes as Python values."""
    await connection.set_type_codec(
        "jsonb", encoder=lambda value: _json.encode(value).decode(), decoder=msgspec.json.decode, schema="pg_catalog"
    )


async def write_problem(connection: Any) -> str | None:
    """Why this database cannot be written: a standby, or ``default_transaction_read_only``; None where it can."""
    if await connection.fetchval("select pg_is_in_recovery()"):
        return "the database is a standby: it can only be read"
    if await connection.fetchval("select current_setting('transaction_read_only')::bool"):
        return "the database can only be read: default_transaction_read_only is on"
    return None


class SlowStatementError(asyncpg.QueryCanceledError):
    """A statement took longer than it may, and Postgres answers others: only the step that made it fails."""


def is_slow(error: BaseException) -> bool:
    """Return whether an error says that a statement took too long, and nothing of Postgres being away.

    Such an error is retried like the others of POSTGRES_AWAY, and must not be reported as an outage.
    """
    return isinstance(error, asyncpg.QueryCanceledError)


#: How long the question whether Postgres answers may take, in seconds.
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


def _telling(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def told(self: Any, statement: str, *args: Any, **options: Any) -> Any:
        try:
            return await method(self, statement, *args, **options)
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            if isinstance(error, SlowStatementError):
                raise
            # A server that canceled a statement answers; of one that does not answer in time nobody knows.
            if isinstance(error, TimeoutError) and not await _answers(self.dsn):
                raise
            setting = ended_by(error)
            ended = f"Postgres ended it: {setting} is set for this session" if setting else "Postgres answers"
            raise SlowStatementError(f"the statement {name_of(statement)} took too long; {ended}") from error

    return told


_METHODS = ("execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_to_table", "copy_records_to_table")


def telling(dsn: str) -> type[asyncpg.Connection]:
    """Return the class of a pool's connections that raise SlowStatementError, with the statement's name.

    asyncpg raises TimeoutError for a statement that takes too long. That is an OSError, as if Postgres were away; it is
    still raised if Postgres at ``dsn`` does not answer another connection either.
    """
    methods = {name: _telling(getattr(asyncpg.Connection, name)) for name in _METHODS}
    return type("TellingConnection", (Session,), {**methods, "dsn": dsn})


#: Postgres is away, for now, or a statement took too long (see ``is_slow``): to be tried again later. asyncpg says
#: InternalClientError of a connection that was cut off in the middle of a COPY, or while it was being given back.
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
    """Return a pool on EVERYRUN_POSTGRES_DSN; ``name`` is shown in pg_stat_activity.

    Each session has the settings ``own``, and no limits of the role's. ``setup`` says how values come; by default
    jsonb comes as Python values.

    Raises PoolerError, and OSError or asyncpg.PostgresError if the database does not answer.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    pool: asyncpg.Pool = await asyncpg.create_pool(
        dsn,
        min_size=min_size,
        max_size=max_size,
        init=preparing(dsn, own or {}, setup),
        connection_class=telling(dsn),
        command_timeout=command_timeout,
        server_settings={"application_name": f"everyrun-{name}"},
    )
    return pool
