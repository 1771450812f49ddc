"""Two schemas of the same tables compared: which rows are not the same, and where.

Each side makes a digest of every row, and of the rows together in a few thousand buckets by key; only rows of
buckets that differ are read. So equal tables cost one reading of each, in Postgres, both at the same time.
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
_AT_ONCE = 500
#: Of 4,096 buckets: each time costs a reading of the table.
_BUCKETS_AT_ONCE = 512
#: They tell how far the tables are, and what made them: compared apart.
_NOT_COMPARED = ("applied_offsets", "schema_migrations", SEEN, GAPS)
_OF_SUBMISSION = ("submission_id", "input_id", "batch_id")
_OF_BATCH = ("batch_id", "input_id")


class Selection(Struct, frozen=True):
    """What is looked at; everything where nothing is given. Times: any time of the row lies between them."""

    batch: str | None = None
    submission: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()


class Table(Struct, frozen=True):
    """A table: its columns in the order of their names with their types, and the columns of its key."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]

    @property
    def row(self) -> str:
        """All of a row as one text, the same on both sides."""
        return "row(" + ", ".join(f'"{column}"' for column in self.columns) + ")::text"

    @property
    def place(self) -> str:
        """The key as one text."""
        return " || '/' || ".join(f'"{column}"::text' for column in self.key)


async def tables_of(connection: asyncpg.Connection, schema: str) -> dict[str, Table]:
    """The tables of a schema that are compared."""
    found: dict[str, Table] = {}
    for record in await connection.fetch(_sql["tables"], schema, list(_NOT_COMPARED)):
        found[record["name"]] = Table(
            record["name"], dict(zip(record["columns"], record["types"], strict=True)), tuple(record["key"])
        )
    return found


def condition(table: Table) -> str:
    """What is selected of a table, by the columns that it has, as SQL; $1 to $4 are those of a selection."""
    times = [column for column, kind in table.columns.items() if kind.startswith("timestamp")]
    ways = {
        "$1::text is null": [_sql[f"of_submission_by_{name}"] for name in _OF_SUBMISSION if name in table.columns],
        "$2::text is null": [_sql[f"of_batch_by_{name}"] for name in _OF_BATCH if name in table.columns],
        "$3::timestamptz is null and $4::timestamptz is null": [_sql["between"].format(time=name) for name in times],
    }
    return " and ".join(f"({' or '.join([unless, *clauses])})" for unless, clauses in ways.items())


async def compare(
    live: asyncpg.Connection, log: asyncpg.Connection, table: Table, selection: Selection, counts: dict[str, int]
) -> AsyncIterator[Difference]:
    """Every difference of a table; ``counts`` is told how many rows of it were compared."""
    query = _sql["rows"].format(
        place=table.place, table=table.name, columns=", ".join(f'"{column}"' for column in table.columns)
    )
    async for keys in _keys(live, log, table, selection, counts):
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            rows = await asyncio.gather(*(side.fetch(query, part) for side in (live, log)))
            one, other = ({row["__key"]: _columns(row) for row in side} for side in rows)
            for key in part:
                if key in one or key in other:
                    for difference in rows_differ(table.name, key, one.get(key), other.get(key)):
                        yield difference


async def _keys(
    live: asyncpg.Connection, log: asyncpg.Connection, table: Table, selection: Selection, counts: dict[str, int]
) -> AsyncIterator[list[str]]:
    """The keys of the rows to be looked at, some at a time."""
    if selection.everything:
        async for part in _by_buckets(live, log, table, counts):
            yield part
    else:
        query = _sql["keys"].format(place=table.place, table=table.name, where=condition(table))
        values = (selection.submission, selection.batch, selection.since, selection.until)
        sides = await asyncio.gather(*(side.fetch(query, *values) for side in (live, log)))
        keys = sorted({row["key"] for side in sides for row in side})
        counts[table.name] = len(keys)
        yield keys


def _columns(row: asyncpg.Record) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "__key"}


async def _by_buckets(
    live: asyncpg.Connection, log: asyncpg.Connection, table: Table, counts: dict[str, int]
) -> AsyncIterator[list[str]]:
    """The keys of rows whose digests differ, some buckets at a time: all of them may, of millions of rows."""
    query = _sql["buckets"].format(place=table.place, row=table.row, table=table.name)
    one, other = await asyncio.gather(*(side.fetch(query) for side in (live, log)))
    counts[table.name] = max(sum(row["rows"] for row in side) for side in (one, other))
    digests = [{row["bucket"]: (row["rows"], row["digest"]) for row in side} for side in (one, other)]
    wanted = sorted({*digests[0], *digests[1]})
    different = [bucket for bucket in wanted if digests[0].get(bucket) != digests[1].get(bucket)]
    query = _sql["digests"].format(place=table.place, row=table.row, table=table.name)
    for start in range(0, len(different), _BUCKETS_AT_ONCE):
        part = different[start : start + _BUCKETS_AT_ONCE]
        rows = await asyncio.gather(*(side.fetch(query, part) for side in (live, log)))
        one_by_key, other_by_key = ({row["key"]: row["digest"] for row in side} for side in rows)
        keys = sorted({*one_by_key, *other_by_key})
        yield [key for key in keys if one_by_key.get(key) != other_by_key.get(key)]
