"""``as-of``: the tables as the log had them at a moment, asked for a report, for results, for a row."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from everyrun.log.reading import Partition
from everyrun.replay.log_position import Moment, offsets_of
from everyrun.replay.rebuild.engine import applied_offsets, tables_connection
from everyrun.replay.rebuild.rebuild import Tell, past, workplace
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "as_of.sql")

#: Kept between questions: the next one of the same moment, or of a later one, has less to read.
SCHEMA = "everyrun_as_of"
#: Records a transaction. A person waits; what a killed command has to do again of a small log takes seconds.
_AT_ONCE = 1000


class AsOf:
    """The tables at a moment. ``offsets`` is where each partition of the log was."""

    def __init__(self, connection: asyncpg.Connection, offsets: dict[Partition, int]) -> None:
        self.connection = connection
        self.offsets = offsets

    async def report(self, submission_id: str) -> dict[str, Any] | None:
        """What was known of a submission: how many inputs had which status, what added up; None where nothing was."""
        row = await self.connection.fetchrow(_sql["report"], submission_id)
        return None if row is None else {name: _plain(value) for name, value in row.items()}

    async def results(self, submission_id: str) -> AsyncIterator[dict[str, Any]]:
        """Every row of the submission, in the order of the input ids, without the whole run."""
        async with self.connection.transaction():
            async for row in self.connection.cursor(_sql["results"], submission_id, prefetch=1000):
                yield {name: _plain(value) for name, value in row.items()}

    async def row(self, input_id: str) -> dict[str, Any] | None:
        """The row of an input whole; of one that was under way its attempt; None where the log had neither."""
        for name in ("row", "attempt"):
            row = await self.connection.fetchrow(_sql[name], input_id)
            if row is not None:
                return {column: _plain(value) for column, value in row.items()}
        return None


def _plain(value: Any) -> Any:
    """Columns of jsonb come as bytes."""
    return msgspec.to_builtins(msgspec.json.decode(value) if isinstance(value, bytes) else value)


@asynccontextmanager
async def as_of(settings: Settings, moment: Moment, tell: Tell) -> AsyncIterator[AsOf]:
    """The tables as of the moment, made from the log in a schema of their own; nobody else may ask meanwhile.

    Raises MomentError where the log does not reach the moment; else as :func:`everyrun.replay.rebuild.rebuild.rebuild`.
    """
    offsets = await offsets_of(settings, moment)
    async with workplace(settings, SCHEMA) as place:
        await place.make(unlogged=True)
        async with tables_connection(settings, SCHEMA) as connection:
            start = await applied_offsets(connection)
        if past(start, offsets):
            await place.drop()
            await place.make(unlogged=True)
        await place.bring_to(offsets, tell, least_at_once=_AT_ONCE)
        async with tables_connection(settings, SCHEMA) as connection:
            yield AsOf(connection, offsets)
