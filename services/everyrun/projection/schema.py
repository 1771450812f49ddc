"""The schema of the tables is gone: making it anew, so that they can be filled from the log."""

from __future__ import annotations

import asyncio

import asyncpg

from everyrun.projection.tables import SCHEMA
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS, migrate
from everyrun.telemetry import log

_log = log(__name__)

#: How it shows that the schema, or all that is in it, is gone.
GONE = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)


async def remake(settings: Settings) -> None:
    """Make the schema ``everyrun`` as its migrations say; under dbmate's lock, so any number of workers may.

    Nothing happens where it is there. Raises everyrun.store.migrate.MigrationError.
    """
    _log.warning("the schema is gone; making it anew", schema=SCHEMA)
    await asyncio.to_thread(migrate, settings.postgres_dsn.get_secret_value(), {SCHEMA: SCHEMAS[SCHEMA]})
