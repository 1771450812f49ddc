"""Ask Postgres for its version, limits, migrations and clock, and for problems that the tables show.

Also test whether the tables can be written, in a transaction that is rolled back. Nothing is changed.
"""

from __future__ import annotations

import time

import asyncpg
from msgspec.structs import replace

from everyrun.doctor.facts import Late, PostgresFacts, ReceiverFacts, Swept
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.migrate import SCHEMAS
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.session import LIMITS, PoolerError, prepare, refuse_pooler
from everyrun.store.sql import beside
from everyrun.waiting import waiting_of

_sql = beside(__file__, "doctor.sql")
_WITHIN = 10.0


async def ask_postgres(settings: Settings) -> tuple[PostgresFacts, list[str]]:
    """Return the facts about Postgres, and the ids of the workflows of the latest submissions, newest first.

    If Postgres fails, the error is returned as one of the facts, and not raised.
    """
    dsn = settings.postgres_dsn.get_secret_value()
    try:
        connection = await asyncpg.connect(dsn, timeout=_WITHIN, command_timeout=_WITHIN)
    except (*POSTGRES_AWAY, ValueError) as error:
        return PostgresFacts(problem=describe(error)), []
    try:
        await refuse_pooler(connection, dsn)
        limits = [tuple(row) for row in await connection.fetch(_sql["limits"], list(LIMITS))]
        await prepare(connection, dsn, {})
        facts, workflows = await _ask(connection, settings)
        return replace(facts, limits=limits), workflows
    except PoolerError:
        return PostgresFacts(shared=True), []
    except POSTGRES_AWAY as error:
        return PostgresFacts(problem=describe(error)), []
    finally:
        connection.terminate()


async def _ask(connection: asyncpg.Connection, settings: Settings) -> tuple[PostgresFacts, list[str]]:
    began = time.time()
    row = await connection.fetchrow(_sql["server"])
    assert row is not None
    clock = row["now"].timestamp() - (began + time.time()) / 2
    migrations: dict[str, list[str] | None] = {}
    for schema in SCHEMAS:
        there = await connection.fetchval(_sql["has_migrations"], schema)
        rows = await connection.fetch(_sql[f"migrations_of_{schema}"]) if there else []
        migrations[schema] = [row["version"] for row in rows] if there else None
    migrated = all(migrations.values())
    read_only = None
    if row["standby"]:
        read_only = "it is a standby"
    elif row["read_only"]:
        read_only = "default_transaction_read_only is on"
    facts = PostgresFacts(
        version=row["version"],
        read_only=read_only,
        write_problem=await _write_problem(connection) if migrated and read_only is None else None,
        migrations=migrations,
        cluster_ids=[row["cluster_id"] for row in await connection.fetch(_sql["cluster_ids"])] if migrated else [],
        lost=[tuple(found) for found in await connection.fetch(_sql["lost"])] if migrated else [],
        clock=clock,
        swept=[Swept(**row) for row in await connection.fetch(_sql["swept"], settings.poll_for)] if migrated else [],
    )
    if migrated:
        rows = await connection.fetch(_sql["late"], settings.overdue_after)
        late = [Late(waiting_of(dict(row)), row["submissions"], row["passed"]) for row in rows]
        receivers = [ReceiverFacts(**row) for row in await connection.fetch(_sql["receivers"])]
        facts = replace(facts, late=late, receivers=receivers)
    workflows = [row["workflow_id"] for row in await connection.fetch(_sql["workflows"])] if migrated else []
    return facts, workflows


async def _write_problem(connection: asyncpg.Connection) -> str | None:
    """Write to both schemas, and roll that back. Return why it failed, or None if it succeeded."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(_sql["write_queue"])
        await connection.execute(_sql["write_projection"])
    except asyncpg.PostgresError as error:
        return describe(error)
    finally:
        await transaction.rollback()
    return None
