"""Connections to Postgres."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from everyrun.settings import Settings

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


#: Postgres is away, for now. asyncpg says InternalClientError of a connection that was cut off in the middle of a
#: COPY, or while it was being given back.
POSTGRES_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


async def open_pool(settings: Settings, *, name: str, min_size: int = 1, max_size: int = 10) -> asyncpg.Pool:
    """A pool on EVERYRUN_POSTGRES_DSN; ``name`` is shown in pg_stat_activity. jsonb values are Python values.

    Raises OSError or asyncpg.PostgresError where the database does not answer.
    """
    return await asyncpg.create_pool(
        settings.postgres_dsn.get_secret_value(),
        min_size=min_size,
        max_size=max_size,
        setup=None,
        init=connection_setup,
        command_timeout=60,
        server_settings={"application_name": f"everyrun-{name}"},
    )
