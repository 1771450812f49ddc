"""Read an input's row from the live tables and the queue, and compare it with the row that its events make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg
import msgspec

from everyrun.log.reading import Partition
from everyrun.replay.audit.row_diff import Difference, rows_differ
from everyrun.replay.history.changes import InputProjection
from everyrun.store.sql import beside

_sql = beside(__file__, "live_rows.sql")

#: Shown as the live value if the events make a row that the live tables do not have.
NO_ROW = "there is no such row in the live tables"
#: Columns of ``results`` of type jsonb.
JSON_COLUMNS = ("file", "metadata", "run")
#: A text is looked up as the beginning of an id only if it has at least _SHORTEST characters, because too many ids
#: begin with a shorter text. No id is longer than _LONGEST.
_SHORTEST, _LONGEST = 6, 600
#: Raised if the database has no queue, or if this database role may not read it.
_NO_QUEUE = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError)


class LiveRows:
    """Reads rows of the live tables and of the queue."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def row(self, input_id: str) -> tuple[dict[str, Any] | None, dict[Partition, int]]:
        """Return an input's row of ``results``, if it has one, and the applied offsets from the same snapshot."""
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                row = await connection.fetchrow(_sql["row_of_input"], input_id)
                offsets = await connection.fetch(_sql["applied_offsets"])
        except asyncpg.UndefinedTableError:
            return None, {}
        applied = {(r["topic"], r["partition"]): r["next_offset"] for r in offsets}
        return None if row is None else dict(row), applied

    async def queued(self, identifier: str) -> dict[str, Any] | None:
        """Return an input's status in the queue; None if the queue does not have the input."""
        submission_id, colon, external_id = identifier.partition(":")
        if not colon or "\x00" in identifier:
            return None
        try:
            row = await self._pool.fetchrow(_sql["queued_input"], submission_id, external_id)
        except _NO_QUEUE:
            return None
        return None if row is None else dict(row)

    async def similar_ids(self, identifier: str) -> list[str]:
        """Return up to three full ids that the user may have meant."""
        if "\x00" in identifier or len(identifier) > _LONGEST:
            return []
        try:
            found = await self._pool.fetch(_sql["similar_ids"], identifier, len(identifier) >= _SHORTEST)
        except _NO_QUEUE:
            return []
        return [row["id"] for row in found]

    async def differences(
        self, key: str, row: Mapping[str, Any] | None, projection: InputProjection
    ) -> list[Difference]:
        """Return every value in which a live row differs from the row that the events make.

        ``row`` is None if there is no live row. If only one side has a row, the only difference says so.
        """
        made = projection.row
        if row is None and made is not None:
            return [Difference("results", key, "*", NO_ROW, "a row")]
        if row is None or made is None:
            return list(rows_differ("results", key, row, made))
        texts = {name: made[name] and made[name].decode() for name in JSON_COLUMNS}
        files = [file.decode() for file in projection.files]
        live, log = dict(row), dict(made)
        columns = [*JSON_COLUMNS, *["file"] * len(files)]
        values = [row[name] for name in columns]
        compared = await self._pool.fetch(_sql["compare_json"], columns, values, [*texts.values(), *files])
        same = {one["column"] for one in compared if one["same"]}
        normal = {one["column"]: one["log"] for one in compared[: len(JSON_COLUMNS)]}
        for name in JSON_COLUMNS:
            # Compare both sides as Postgres writes them; otherwise 1.0 and 1 would count as a difference.
            live[name], log[name] = (None, None) if name in same else (json_value(row[name]), json_value(normal[name]))
        return list(rows_differ("results", key, live, log))


def json_value(text: str | None) -> Any:
    """Decode the text of a jsonb column."""
    return None if text is None else msgspec.json.decode(text)
