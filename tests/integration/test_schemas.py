"""docs/reference/tables.md is what a migrated database says. EVERYRUN_WRITE=1 writes it."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg

from everyrun import schemas

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"


async def test_the_page_of_tables_is_what_the_database_says(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        page = await schemas.tables_page(connection)
    finally:
        await connection.close()
    if os.environ.get("EVERYRUN_WRITE"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "run: make schemas"
