"""Prepare Postgres sessions: remove the role's limits, apply our settings, and refuse poolers without sessions.

A role, a database or a server may set limits (``statement_timeout`` and others) that would end a long upload. Everyrun
sets those limits to 0 in each session, and has timeouts in the client instead. It sets the limits with statements after
it has connected, because PgBouncer refuses a connection that starts with these settings.

A session has state: settings, prepared statements, advisory locks. A pooler in transaction mode may give each
transaction another session, so this state would be lost. Such a pooler is detected and refused (``PoolerError``).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import asyncpg

from everyrun.errors import Unavailable
from everyrun.settings import SettingsError

#: Settings by which a role, a database or a server can end statements, transactions or sessions. 0 means no limit.
LIMITS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)

#: The check for a pooler: how many times each connection asks for its server process, and the timeout in seconds.
_ROUNDS = 8
_WITHIN = 10.0


def _says_shared(error: asyncpg.PostgresError) -> bool:
    """Return True if an error shows that there is a pooler without sessions.

    Such an error says that PgBouncer is in statement mode, or that a prepared statement is missing or exists already,
    because another session prepared it. PgBouncer uses the same SQLSTATE for nearly all of its own errors, so the text
    of the error must be searched.
    """
    lost = isinstance(error, (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError))
    return lost or "statement pooling mode" in str(error).lower()


class PoolerError(Unavailable, SettingsError):
    """The dsn leads to a pooler that may give each transaction another session."""

    def __init__(self) -> None:
        super().__init__(
            "EVERYRUN_POSTGRES_DSN leads to a connection pooler (PgBouncer) in transaction or statement mode. Everyrun "
            "needs sessions, because settings, prepared statements and advisory locks are lost between transactions "
            "there. Set pool_mode = session for this database, or set the dsn to Postgres itself"
        )


class Session(asyncpg.Connection):
    """A connection that keeps its own settings when it returns to a pool."""

    #: The statements that apply the settings, each ended by a semicolon.
    own = ""

    def get_reset_query(self) -> str:
        """Return the statements that reset the session: asyncpg's, and then those that apply our own settings again."""
        return f"{super().get_reset_query()}\n{self.own}"


async def refuse_pooler(connection: Any, dsn: str) -> None:
    """Raise PoolerError if the connection has no session of its own.

    When a connection starts, the server sends the id of its process. If a statement then runs in another process, there
    is a pooler, and :func:`is_shared` finds out whether it keeps sessions.
    """
    try:
        server = await connection.fetchval("select pg_backend_pid()")
        shared = server != connection.get_server_pid() and await is_shared(dsn)
    except asyncpg.PostgresError as error:
        if not _says_shared(error):
            raise
        shared = True
    if shared:
        raise PoolerError


async def prepare(connection: Any, dsn: str, own: Mapping[str, str]) -> None:
    """Apply the settings in ``own`` to a new connection, and remove the role's limits.

    No statement is sent for a limit that is not set, because the same statements run again whenever the connection
    returns to the pool. Raises PoolerError as :func:`refuse_pooler` does.
    """
    await refuse_pooler(connection, dsn)
    limits = await connection.fetch(
        "select name from unnest($1::text[]) name where current_setting(name, true) <> '0'", list(LIMITS)
    )
    wanted = {**own, **{row["name"]: "0" for row in limits}}
    statements = "".join(f"set {name} to {_literal(value)};" for name, value in wanted.items())
    if statements:
        await connection.execute(statements)
    # isinstance() does not work here: for asyncpg, every connection is an instance of every connection class.
    if issubclass(type(connection), Session):
        connection.own = statements


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


async def connect(dsn: str, *, name: str, own: Mapping[str, str] | None = None, **options: Any) -> asyncpg.Connection:
    """Return a connection outside of any pool; ``name`` is shown in pg_stat_activity.

    ``options`` are passed to asyncpg.connect. Raises PoolerError if a pooler without sessions is in between. Raises
    OSError or asyncpg.PostgresError if no connection can be opened.
    """
    named = {"application_name": f"everyrun-{name}"}
    connection: asyncpg.Connection = await asyncpg.connect(dsn, server_settings=named, **options)
    try:
        await prepare(connection, dsn, own or {})
    except BaseException:
        connection.terminate()
        raise
    return connection


def preparing(
    dsn: str, own: Mapping[str, str], then: Callable[[asyncpg.Connection], Awaitable[None]]
) -> Callable[[asyncpg.Connection], Coroutine[Any, Any, None]]:
    """Return a function that a pool calls with each new connection. It calls ``prepare``, and then ``then``."""

    async def prepared(connection: asyncpg.Connection) -> None:
        await prepare(connection, dsn, own)
        await then(connection)

    return prepared


#: For each dsn that was checked: whether it leads to a pooler without sessions.
_known: dict[str, bool] = {}


async def is_shared(dsn: str) -> bool:
    """Return True if connections share sessions, or change their session between transactions.

    To find out, two connections ask in turn which server process they use. In session mode, each connection keeps a
    process of its own. In transaction mode, an idle pooler gives the same process to both connections, and a busy
    pooler gives a connection another process from time to time.
    """
    if dsn not in _known:
        _known[dsn] = await _ask(dsn)
    return _known[dsn]


async def _ask(dsn: str) -> bool:
    options: dict[str, Any] = {"timeout": _WITHIN, "command_timeout": _WITHIN, "statement_cache_size": 0}
    connections = [await asyncpg.connect(dsn, **options)]
    try:
        connections.append(await asyncpg.connect(dsn, **options))
        servers: list[set[int]] = [set(), set()]
        for _ in range(_ROUNDS):
            for connection, seen in zip(connections, servers, strict=True):
                async with connection.transaction():
                    seen.add(await connection.fetchval("select pg_backend_pid()"))
        first, second = servers
        return len(first) > 1 or len(second) > 1 or first == second
    except asyncpg.PostgresError as error:
        if _says_shared(error):
            return True
        raise
    finally:
        for connection in connections:
            connection.terminate()


#: The setting that ended a statement, a transaction or a session, by the SQLSTATE of the error.
_ENDED_BY = {
    "55P03": "lock_timeout",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "57P05": "idle_session_timeout",
}


def ended_by(error: BaseException) -> str | None:
    """Return the setting that made Postgres end a statement, a transaction or a session; None for other errors."""
    if not isinstance(error, asyncpg.PostgresError):
        return None
    if error.sqlstate == "57014":
        return "statement_timeout" if re.search("statement[ _]timeout", str(error)) else None
    if error.sqlstate == "55P03" and "lock timeout" not in str(error):
        return None
    return _ENDED_BY.get(error.sqlstate or "")
