"""Show a report, results or a row as of an earlier position of the log (``everyrun as-of``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from everyrun.log.reading import Partition
from everyrun.replay.log_position import LogPosition, resolve_offsets
from everyrun.replay.progress import OnRebuildProgress
from everyrun.replay.rebuild.engine import applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild_schema import hold_schema, partitions_past
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "as_of.sql")

#: The schema is kept. If the next question is about the same or a later position, less of the log must be applied.
SCHEMA = "everyrun_as_of"
#: Minimum number of records per transaction. It is larger than for a rebuild, because a person is waiting for the
#: answer, and a killed command loses only some seconds of work.
_MIN_RECORDS = 1000


class AsOf:
    """The tables as of a position of the log. ``offsets`` is this position, as the next offset of each partition."""

    def __init__(self, connection: asyncpg.Connection, offsets: dict[Partition, int]) -> None:
        self.connection = connection
        self.offsets = offsets

    async def report(self, submission_id: str) -> dict[str, Any] | None:
        """Return the report of a submission; None if the log did not have the submission yet."""
        row = await self.connection.fetchrow(_sql["report"], submission_id)
        return None if row is None else {name: _plain(value) for name, value in row.items()}

    async def results(self, submission_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the submission's rows of ``results``, sorted by input id and without the column ``run``."""
        async with self.connection.transaction():
            async for row in self.connection.cursor(_sql["results"], submission_id, prefetch=1000):
                yield {name: _plain(value) for name, value in row.items()}

    async def row(self, input_id: str) -> dict[str, Any] | None:
        """Return an input's row of ``results``.

        If there is no row, return the input's latest attempt. If there is no attempt either, return None.
        """
        for name in ("row", "attempt"):
            row = await self.connection.fetchrow(_sql[name], input_id)
            if row is not None:
                return {column: _plain(value) for column, value in row.items()}
        return None


def _plain(value: Any) -> Any:
    """Convert the value of a column to plain JSON types. A jsonb value is given as bytes."""
    return msgspec.to_builtins(msgspec.json.decode(value) if isinstance(value, bytes) else value)


@asynccontextmanager
async def as_of(settings: Settings, position: LogPosition, on_progress: OnRebuildProgress) -> AsyncIterator[AsOf]:
    """Build the tables as of a position in a separate schema, and lock this schema while the block runs.

    Raises LogPositionError if the log does not reach the position. Also raises what
    :func:`everyrun.replay.rebuild.rebuild_schema.rebuild` raises.
    """
    offsets = await resolve_offsets(settings, position)
    async with hold_schema(settings, SCHEMA) as held:
        await held.create(unlogged=True)
        async with tables_connection(settings, SCHEMA) as connection:
            start = await applied_offsets(connection)
        if partitions_past(start, offsets):
            await held.drop()
            await held.create(unlogged=True)
        await held.apply_until(offsets, on_progress, min_records=_MIN_RECORDS)
        async with tables_connection(settings, SCHEMA) as connection:
            yield AsOf(connection, offsets)
