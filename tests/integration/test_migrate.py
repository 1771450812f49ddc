"""Each schema has its own migrations and its own record of them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from everyrun.store.migrate import SCHEMAS, MigrationError, migrate

pytestmark = pytest.mark.stack


async def _shape(connection: asyncpg.Connection) -> list[tuple[str, ...]]:
    rows = await connection.fetch(
        "select table_schema, table_name, column_name, data_type from information_schema.columns"
        " where table_schema in ('everyrun', 'everyrun_queue') order by 1, 2, ordinal_position"
    )
    return [tuple(row) for row in rows]


async def test_dropped_schema_is_created_again_and_the_other_keeps_its_rows(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        before = await _shape(connection)
        assert {row[0] for row in before} == {"everyrun", "everyrun_queue"}
        await connection.execute("create table everyrun_queue.kept as select 1 as one")
        await connection.execute("drop schema everyrun cascade")
        await asyncio.to_thread(migrate, database)
        assert await connection.fetchval("select one from everyrun_queue.kept") == 1
        await connection.execute("drop table everyrun_queue.kept")
        assert await _shape(connection) == before
        # Nothing of ours, including the record of migrations, is outside our schemas.
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    finally:
        await connection.close()


async def test_concurrent_migrations_do_not_conflict(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("drop schema everyrun cascade; drop schema everyrun_queue cascade")
        await asyncio.gather(asyncio.to_thread(migrate, database), asyncio.to_thread(migrate, database))
        assert await connection.fetchval("select count(*) from everyrun.results") == 0
    finally:
        await connection.close()


async def test_failed_migration_is_explained_without_the_password(database: str, tmp_path: Path) -> None:
    (tmp_path / "20260101000000_bad.sql").write_text("-- migrate:up\nselect nonsense;\n-- migrate:down\n")
    password = re.search(r":([^:@/]+)@", database)
    assert password is not None
    with pytest.raises(MigrationError, match=r"schema bad: .*nonsense") as raised:
        await asyncio.to_thread(migrate, database, {"bad": tmp_path})
    assert password[1] not in str(raised.value)


def test_unavailable_database_is_reported_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everyrun.store.migrate.WAIT", "1s")
    with pytest.raises(MigrationError) as raised:
        migrate("postgresql://everyrun:hunter2@127.0.0.1:1/everyrun?sslmode=disable")
    assert "hunter2" not in str(raised.value)


async def test_projection_can_be_created_in_another_schema(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await asyncio.to_thread(migrate, database, {"beside": SCHEMAS["everyrun"]})
        shapes = []
        for schema in ("everyrun", "beside"):
            rows = await connection.fetch(
                "select table_name, column_name, data_type from information_schema.columns where table_schema = $1"
                " order by 1, ordinal_position",
                schema,
            )
            shapes.append([tuple(row) for row in rows])
        assert shapes[0] == shapes[1]
        definitions = await connection.fetch("select definition from pg_views where schemaname = 'beside'")
        assert definitions
        assert not [d for (d,) in definitions if "everyrun." in d]
    finally:
        await connection.close()
