"""Read the rows of an export from Postgres, part by part, as the bytes that COPY writes.

Each part is a range of the primary key and a statement of its own. So no transaction stays open while a slow client
reads, and the memory holds only a few parts. An input is in exactly one part, because its id never changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
from msgspec import Struct

from everyrun.http import InvalidFieldError
from everyrun.query.export_formats import COLUMNS, EXTRACTED, Format, Kind
from everyrun.query.filter_parameters import statement
from everyrun.query.filters import Filter, conditions_of
from everyrun.query.gate import Gate
from everyrun.query.paging import Connection, make_cursor, malformed_cursor, read_cursor
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "export.sql")

#: A part has about this many bytes. The number of its rows follows from the size of the rows before.
PART_BYTES = 1 << 20
#: Minimum, first and maximum number of rows of a part, before the filter.
_FEWEST_ROWS, _FIRST_ROWS, _MOST_ROWS = 10, 100, 10_000
#: Maximum number of rows of a part with extracted values. After a filter found few rows for a while, the next part may
#: be much larger than the ones before; without such values, a row has less than a kilobyte.
_MOST_ROWS_EXTRACTED = 500
#: If Postgres does not answer, an export that has begun retries a part for this many seconds.
PATIENCE = 60.0
_RFC3339 = """to_char({} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as {}"""


class Export(Struct, frozen=True):
    """Describes what is exported: the inputs that fit the filter, and, if ``since`` is set, that have changed since.

    ``since`` is the number of a transaction: rows that older transactions wrote are left out.
    """

    wanted: Filter
    format: Format
    extracted: bool = False
    since: int | None = None

    @property
    def columns(self) -> dict[str, Kind]:
        """The columns and their types."""
        return {**COLUMNS, EXTRACTED: "json"} if self.extracted else COLUMNS


class State(Struct, frozen=True):
    """The state of the tables at a moment. ``tables`` identifies them; ``oldest`` is the oldest open transaction."""

    tables: str
    oldest: int


async def state_of_tables(connection: Connection) -> State:
    """Return the present state of the tables. Read it before the rows of an export."""
    row = await connection.fetchrow(_sql["state_of_tables"])
    assert row is not None
    return State(row["tables"], int(row["oldest"]))


async def waiting_for_a_new_try(connection: Connection, submission_id: str) -> int:
    """Return the number of unsent inputs that are exported nevertheless, because an earlier try was sent."""
    found: int = await connection.fetchval(_sql["waiting_for_a_new_try"], submission_id)
    return found


def export_cursor(wanted: Filter, state: State) -> str:
    """Return the text with which a later export finds the rows that changed after ``state``."""
    return make_cursor({"export": wanted.named()}, f"{state.oldest}@{state.tables}")


def read_export_cursor(wanted: Filter, cursor: str | None, state: State) -> int | None:
    """Return the transaction since which rows are exported, or None if all rows must be.

    All rows must be exported if the tables are not those of the cursor: they were rebuilt or restored, or another
    server took over. Raises InvalidFieldError if the cursor is malformed or was made with other filters.
    """
    try:
        text = read_cursor({"export": wanted.named()}, cursor)
        if text is None:
            return None
        number, _, tables = text.partition("@")
        if not (number.isdecimal() and len(number) < 19 and tables):
            raise malformed_cursor()
    except InvalidFieldError as error:
        raise InvalidFieldError("since", str(error).removeprefix("cursor: ")) from None
    # A number from the future is of another server too.
    return int(number) if tables == state.tables and int(number) <= state.oldest else None


async def parts(pool: asyncpg.Pool, gate: Gate, export: Export) -> AsyncIterator[bytes]:
    """Yield the rows as Postgres writes them: as lines of JSON, or as CSV without a header.

    The first part waits for its turn only as long as other requests do. If Postgres stops answering after that, the
    part is retried for PATIENCE seconds. Raises BusyError and asyncpg's errors.
    """
    submission = export.wanted.submission_id
    assert submission is not None
    after, rows, patient = f"{submission}:", _FIRST_ROWS, False
    while True:
        until, part = await _retried(pool, gate, export, after, rows, patient)
        if until is None:
            return
        yield part
        after, patient = until, True
        wanted = rows * PART_BYTES // max(len(part), 1)
        rows = max(_FEWEST_ROWS, min(wanted, 2 * rows, _MOST_ROWS_EXTRACTED if export.extracted else _MOST_ROWS))


async def _retried(
    pool: asyncpg.Pool, gate: Gate, export: Export, after: str, rows: int, patient: bool
) -> tuple[str | None, bytes]:
    began = time.monotonic()
    while True:
        try:
            async with gate.turn(patient=patient), pool.acquire() as connection:
                return await _part(connection, export, after, rows)
        except POSTGRES_AWAY as error:
            if not patient or time.monotonic() - began > PATIENCE:
                raise
            _log.warning("an export waits for the database", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.5)


async def _part(connection: Connection, export: Export, after: str, rows: int) -> tuple[str | None, bytes]:
    """Return the id of the last input in the part, or None if none is left, and the rows."""
    until = await connection.fetchval(_sql["begin_part"], export.wanted.submission_id, after, rows)
    if until is None:
        return None, b""
    text, values = part_statement(export, after, until)
    lines: list[bytes] = []

    async def take(data: bytes) -> None:
        lines.append(bytes(data))

    # JSON has no control characters, so that these never occur in it, and nothing is quoted.
    json: dict[str, Any] = {"delimiter": "\x01", "quote": "\x02", "escape": "\x02"} if export.format == "ndjson" else {}
    await connection.copy_from_query(text, *values, output=take, format="csv", **json)
    return until, b"".join(lines)


def part_statement(export: Export, after: str, until: str) -> tuple[str, list[str]]:
    """Return the statement that reads a part, and the values of its parameters."""
    filtered = export.wanted.named().keys() - {"submission_id"} or export.since is not None
    conditions = conditions_of(export.wanted) if filtered else conditions_of(Filter())
    if export.since is not None:
        conditions.add("changed_since", export.since)
    places = {
        "after": conditions.parameter(after),
        "until": conditions.parameter(until),
        "submission": conditions.parameter(export.wanted.submission_id),
    }
    chosen = [_column(name, kind, export.format) for name, kind in COLUMNS.items()]
    text = statement(
        _sql["part"],
        columns=", ".join([*chosen, _sql["extracted"]] if export.extracted else chosen),
        filter=_sql["filter"] if filtered else "true",
    )
    text = statement(text, **places, conditions=conditions.text)
    return (statement(_sql["as_json"], part=text) if export.format == "ndjson" else text), conditions.values


def _column(name: str, kind: Kind, format_: Format) -> str:
    if format_ == "csv" and kind == "time":
        return _RFC3339.format(name, name)
    # COPY would write t and f.
    return f"{name}::text as {name}" if format_ == "csv" and kind == "bool" else name


async def ahead(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the items of a source, and fetch the next item while the caller works on one."""
    following = asyncio.ensure_future(anext(source, None))
    try:
        while (item := await following) is not None:
            following = asyncio.ensure_future(anext(source, None))
            yield item
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await following
