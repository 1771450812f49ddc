"""Compare the same tables in two schemas, and list the rows that differ.

In each schema, Postgres hashes every row, divides the rows among 4,096 buckets by their keys, and hashes each bucket.
Only the rows of buckets whose hashes differ are read. So two equal tables cost one scan each, and both scans run at the
same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

import asyncpg
from msgspec import Struct

from everyrun.replay.audit.log_check import GAPS, SEEN
from everyrun.replay.audit.row_diff import Difference, rows_differ
from everyrun.store.sql import beside

_sql = beside(__file__, "compare.sql")
#: Number of rows that one query reads.
_ROWS_AT_ONCE = 500
#: Number of buckets (out of 4,096) for which one query reads the hashes of the rows. Each query scans the whole table.
_BUCKETS_AT_ONCE = 512
#: Tables that are not made from events. The audit checks ``applied_offsets`` separately.
_NOT_COMPARED = ("applied_offsets", "schema_migrations", SEEN, GAPS)
_OF_SUBMISSION = ("submission_id", "input_id", "batch_id")
_OF_BATCH = ("batch_id", "input_id")


class RowSelection(Struct, frozen=True):
    """The rows to compare. A field that is None is ignored.

    A row matches ``since`` (inclusive) and ``until`` (exclusive) if one of its timestamps is between them.
    """

    batch: str | None = None
    submission: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def everything(self) -> bool:
        """True if no row is left out."""
        return self == RowSelection()


class Table(Struct, frozen=True):
    """A table: the types of its columns by name, and the columns of its primary key."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]

    @property
    def row_text(self) -> str:
        """The SQL expression of a whole row as text; equal rows in both schemas have the same text."""
        return "row(" + ", ".join(f'"{column}"' for column in self.columns) + ")::text"

    @property
    def key_text(self) -> str:
        """The SQL expression of a row's primary key as text."""
        return " || '/' || ".join(f'"{column}"::text' for column in self.key)


async def tables_of(connection: asyncpg.Connection, schema: str) -> dict[str, Table]:
    """Return the tables of a schema that an audit compares, by name."""
    found: dict[str, Table] = {}
    for record in await connection.fetch(_sql["tables"], schema, list(_NOT_COMPARED)):
        found[record["name"]] = Table(
            record["name"], dict(zip(record["columns"], record["types"], strict=True)), tuple(record["key"])
        )
    return found


def condition(table: Table) -> str:
    """Return the SQL condition that selects rows of a table by a RowSelection.

    Its parameters are the submission ($1), the batch ($2), ``since`` ($3) and ``until`` ($4). If a parameter is given
    and the table has no column for it, no row matches.
    """
    times = [column for column, kind in table.columns.items() if kind.startswith("timestamp")]
    clauses_unless = {
        "$1::text is null": [_sql[f"of_submission_by_{name}"] for name in _OF_SUBMISSION if name in table.columns],
        "$2::text is null": [_sql[f"of_batch_by_{name}"] for name in _OF_BATCH if name in table.columns],
        "$3::timestamptz is null and $4::timestamptz is null": [_sql["between"].format(time=name) for name in times],
    }
    return " and ".join(f"({' or '.join([unless, *clauses])})" for unless, clauses in clauses_unless.items())


async def compare(
    live: asyncpg.Connection, log: asyncpg.Connection, table: Table, selection: RowSelection, counts: dict[str, int]
) -> AsyncIterator[Difference]:
    """Yield every difference of a table, and put the number of compared rows into ``counts``.

    ``live`` is a connection to the live tables, ``log`` a connection to the tables that were made from the log.
    """
    query = _sql["rows"].format(
        key=table.key_text, table=table.name, columns=", ".join(f'"{column}"' for column in table.columns)
    )
    async for keys in _keys(live, log, table, selection, counts):
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            part = keys[start : start + _ROWS_AT_ONCE]
            rows = await asyncio.gather(*(side.fetch(query, part) for side in (live, log)))
            live_rows, log_rows = ({row["__key"]: _columns(row) for row in side} for side in rows)
            for key in part:
                if key in live_rows or key in log_rows:
                    for difference in rows_differ(table.name, key, live_rows.get(key), log_rows.get(key)):
                        yield difference


async def _keys(
    live: asyncpg.Connection, log: asyncpg.Connection, table: Table, selection: RowSelection, counts: dict[str, int]
) -> AsyncIterator[list[str]]:
    """Yield the keys of the rows to read, in lists."""
    if selection.everything:
        async for part in _keys_that_differ(live, log, table, counts):
            yield part
    else:
        query = _sql["keys"].format(key=table.key_text, table=table.name, where=condition(table))
        values = (selection.submission, selection.batch, selection.since, selection.until)
        sides = await asyncio.gather(*(side.fetch(query, *values) for side in (live, log)))
        keys = sorted({row["key"] for side in sides for row in side})
        counts[table.name] = len(keys)
        yield keys


def _columns(row: asyncpg.Record) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "__key"}


async def _keys_that_differ(
    live: asyncpg.Connection, log: asyncpg.Connection, table: Table, counts: dict[str, int]
) -> AsyncIterator[list[str]]:
    """Yield the keys of the rows whose hashes differ. There may be millions, so each list covers only some buckets."""
    query = _sql["buckets"].format(key=table.key_text, row=table.row_text, table=table.name)
    live_rows, log_rows = await asyncio.gather(*(side.fetch(query) for side in (live, log)))
    counts[table.name] = max(sum(row["rows"] for row in side) for side in (live_rows, log_rows))
    live_buckets, log_buckets = (
        {row["bucket"]: (row["rows"], row["digest"]) for row in side} for side in (live_rows, log_rows)
    )
    buckets = sorted({*live_buckets, *log_buckets})
    different = [bucket for bucket in buckets if live_buckets.get(bucket) != log_buckets.get(bucket)]
    query = _sql["digests"].format(key=table.key_text, row=table.row_text, table=table.name)
    for start in range(0, len(different), _BUCKETS_AT_ONCE):
        part = different[start : start + _BUCKETS_AT_ONCE]
        rows = await asyncio.gather(*(side.fetch(query, part) for side in (live, log)))
        live_by_key, log_by_key = ({row["key"]: row["digest"] for row in side} for side in rows)
        keys = sorted({*live_by_key, *log_by_key})
        yield [key for key in keys if live_by_key.get(key) != log_by_key.get(key)]
