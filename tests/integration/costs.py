"""Measure the cost of a statement: the pages of tables and indexes that it reads, as Postgres counts them."""

from __future__ import annotations

import json
from typing import Any

import asyncpg


async def pages(connection: asyncpg.Connection, statement: str, *values: Any) -> int:
    """Run a statement, take back what it changed, and return how many pages it read."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        explained = await connection.fetchval(f"explain (analyze, buffers, format json) {statement}", *values)
    finally:
        await transaction.rollback()
    plan = (json.loads(explained) if isinstance(explained, str) else explained)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def settled(connection: asyncpg.Connection, *tables: str) -> None:
    """Have Postgres know the tables as autovacuum would after a while."""
    for table in tables:
        await connection.execute(f"vacuum analyze {table}")
