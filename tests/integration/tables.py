"""The tables of the projection as a whole: what is in them, and what a log makes of them undisturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from everyrun.log import topics
from everyrun.log.reading import end_offsets, read_polls
from everyrun.projection import tables
from everyrun.projection.apply import apply
from everyrun.projection.offsets import INPUTS
from everyrun.settings import Settings

# fmt: off
TABLES = (
    "submissions", "batches", "results", "other_runs", "unmatched_runs", "deliveries", "quarantine", "decisions",
)
# fmt: on


async def connect(dsn: str) -> asyncpg.Connection:
    """A connection as the processor's."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "everyrun"})
    await tables.setup_connection(connection)
    return connection


async def contents(connection: asyncpg.Connection, *more: str) -> dict[str, list[str]]:
    """Every row of every table as text, all columns, sorted."""
    return {
        table: [row[0] for row in await connection.fetch(f"select t::text from {table} t order by 1")]
        for table in (*TABLES, *more)
    }


async def applied(connection: asyncpg.Connection) -> dict[tuple[str, int], int]:
    """Return the next offset to apply of each partition, without empty partitions."""
    rows = await connection.fetch("select topic, partition, next_offset from applied_offsets where next_offset > 0")
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


async def ends(settings: Settings) -> dict[tuple[str, int], int]:
    """Return the end of each partition that the projection reads, without empty partitions."""
    return {position: end for position, end in (await end_offsets(settings, INPUTS)).items() if end}


async def project(settings: Settings, dsn: str) -> None:
    """Apply the whole log to a database, undisturbed."""

    async def set_aside(_poison: object) -> None:
        # Whoever projected it first has written these to the quarantine: they are in the log.
        return

    connection = await connect(dsn)
    cluster = await topics.identity(settings)
    for (topic, partition), end in sorted((await ends(settings)).items()):
        async for poll in read_polls(settings, (topic, partition), 0, end):
            await apply(connection, [poll], cluster, set_aside)
    await connection.close()


async def restore_rows(connection: Any, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Copy rows that were read before back into a table of the queue. Postgres computes the generated columns again."""
    generated = await connection.fetch(
        "select attname from pg_attribute where attrelid = $1::text::regclass and attgenerated <> ''",
        f"everyrun_queue.{table}",
    )
    if rows:
        columns = [name for name in rows[0].keys() if name not in {row["attname"] for row in generated}]  # noqa: SIM118
        records = [tuple(row[name] for name in columns) for row in rows]
        await connection.copy_records_to_table(table, records=records, columns=columns, schema_name="everyrun_queue")
