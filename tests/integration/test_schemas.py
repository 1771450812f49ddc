"""docs/reference/tables.md matches a migrated database. EVERYRUN_WRITE=1 writes it."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg

from everyrun import reference_pages

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"


async def test_the_page_of_tables_is_what_the_database_says(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        page = await reference_pages.tables_page(connection)
    finally:
        await connection.close()
    if os.environ.get("EVERYRUN_WRITE"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "run: make schemas"


async def test_every_table_and_every_column_is_described(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        without = await connection.fetch(
            """
            select c.relnamespace::regnamespace::text as schema, c.relname, a.attname
            from pg_class c
            join pg_attribute a on a.attrelid = c.oid and a.attnum >= 0 and not a.attisdropped
            where c.relnamespace::regnamespace::text in ('everyrun', 'everyrun_queue', 'everyrun_index')
              and c.relkind in ('r', 'v') and c.relname <> 'schema_migrations'
              and col_description(c.oid, a.attnum) is null
            union all
            select c.relnamespace::regnamespace::text, c.relname, null from pg_class c
            where c.relnamespace::regnamespace::text in ('everyrun', 'everyrun_queue', 'everyrun_index')
              and c.relkind in ('r', 'v') and c.relname <> 'schema_migrations'
              and obj_description(c.oid, 'pg_class') is null
            """
        )
        schemas_there = await connection.fetchval(
            "select count(*) from pg_namespace where nspname in ('everyrun', 'everyrun_queue', 'everyrun_index')"
        )
    finally:
        await connection.close()
    assert [tuple(row) for row in without] == []
    assert schemas_there == 3


async def test_the_page_shows_keys_indexes_and_collations(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        page = await reference_pages.tables_page(connection)
        indexes = await connection.fetch(
            "select indexname from pg_indexes where schemaname = 'everyrun' and tablename <> 'schema_migrations'"
        )
    finally:
        await connection.close()
    assert [row["indexname"] for row in indexes if f"`{row['indexname']}`" not in page] == []
    assert '| version | text collate "C" |' in page
    assert "- primary key `results_pkey` on `input_id`" in page
    assert "- index `results_not_processed` on `submission_id, status, input_id`, of rows where" in page
