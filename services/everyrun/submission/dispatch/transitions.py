"""How a happening takes effect: under the lock of the chunk's row, step, say, keep.

So no two processes step the same chunk at once, nothing is decided on a state that has moved on, and nothing is kept
that the log has not acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import NotFound
from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.log.producer import Log
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission import pauses
from everyrun.submission.dispatch import event_records
from everyrun.submission.dispatch.classify import Taken
from everyrun.submission.dispatch.protocol import (
    Answered,
    ChunkState,
    Evidence,
    Happening,
    NotPossibleError,
    Step,
    step,
)
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "../queue.sql")


class UnknownChunkError(NotFound):
    """The queue has no such chunk."""


def state_of(row: Any) -> ChunkState:
    """A chunk's state, out of its row."""
    sending = row["state"] == "sending"
    return ChunkState(
        row["state"],
        row["attempt"],
        row["resends"],
        row["batch_id"],
        row["reason"],
        size=row["last_position"] - row["first_position"] + 1,
        claimed=sending and row["owner"] is not None,
        announced=sending and row["announced"] >= row["attempt"],
        files_lost=row["files_lost"],
    )


async def inputs_of(connection: Any, row: Any) -> list[events.Input]:
    """The inputs of a chunk, in order, as they were handed in: with their presigned URLs and passwords."""
    where = (row["submission_id"], row["first_position"], row["last_position"])
    return [
        events.Input(
            input_id=f"{row['submission_id']}:{r['external_id']}",
            external_id=r["external_id"],
            position=r["position"],
            file=msgspec.json.decode(r["file"]),
            metadata=msgspec.json.decode(r["metadata"]),
        )
        for r in await connection.fetch(_sql["chunk_inputs"], *where)
    ]


async def insert_parts(connection: Any, cuts: Iterable[tuple[str, Iterable[events.Part]]]) -> list[str]:
    """Put the parts of chunks into the queue, unless they are there or their submission, named with them, is not.

    Return those that were not there.
    """
    rows = [
        (part.chunk, submission_id, part.first_position, part.last_position)
        for submission_id, parts in cuts
        for part in parts
    ]
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [row["chunk"] for row in await connection.fetch(_sql["insert_parts"], *columns)]


class Transitions:
    """Steps chunks of the queue."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, log: Log) -> None:
        self._settings = settings
        self._pool = pool
        self._log = log

    async def take(
        self,
        chunk: str,
        happening: Happening,
        *,
        told: bool = False,
        wait: float = 0.0,
        incarnation: str | None = None,
    ) -> Step:
        """Let it happen to the chunk; ``told``: the log knows what there is to say.

        A chunk that waits after it is not claimed before ``wait`` seconds are over, by the database's clock.

        What is about a claim made in one incarnation of the database is not possible in another: the attempt there may
        be another worker's.

        Raises NotPossibleError and UnknownChunkError, after which nothing was said or changed; KafkaError and
        asyncpg's errors, after which it may have been said, and is not kept: it may be taken again.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            row: Any = await connection.fetchrow(_sql["lock_chunk"], chunk)
            if row is None:
                raise UnknownChunkError(f"there is no chunk {chunk}")
            if incarnation is not None and row["incarnation"] != incarnation:
                raise NotPossibleError("the queue is another one than the chunk was claimed in")
            before = state_of(row)
            done = step(before, happening)
            kinds = {say.kind for say in done.say}
            if done.say and not told:
                inputs = await inputs_of(connection, row) if kinds & event_records.WHOLE else []
                await self._say(row, done, happening, inputs)
            if done.after != before:
                await self._keep(connection, chunk, done.after, wait)
            if done.parts:
                await insert_parts(connection, [(row["submission_id"], event_records.parts_of(row, done))])
            if done.block:
                blocked = pauses.Pause(done.block, row[f"{done.block}_id"])
                await pauses.pause_blocked(connection, self._log, blocked, done.after.reason or "")
        if done.after.state not in ("sent", "waiting") or done.after.reason:
            after = done.after
            _log.info("chunk", chunk=chunk, attempt=after.attempt, state=after.state, reason=after.reason)
        if isinstance(happening, Answered):
            hit("dispatcher.after_row")
        elif isinstance(happening, Evidence):
            hit("adopt.after_row")
        return done

    async def tell_taken(self, row: Any, inputs: list[events.Input], answered: Answered) -> None:
        """Tell the log of an answer that says the batch was taken: that is so, whatever became of the queue since."""
        assert isinstance(answered.outcome, Taken)
        sending = ChunkState("sending", row["attempt"])
        await self._say(row, step(sending, answered), answered, inputs)

    async def _say(self, row: Any, done: Step, happening: Happening, inputs: list[events.Input]) -> None:
        if isinstance(happening, Answered):
            hit("dispatcher.before_produce")
        elif isinstance(happening, Evidence):
            hit("adopt.before_produce")
        await self._log.append(event_records.said(row, done, happening, inputs, datetime.now(UTC)))
        if isinstance(happening, Answered):
            hit("dispatcher.after_produce")
        elif isinstance(happening, Evidence):
            hit("adopt.after_produce")

    async def _keep(self, connection: Any, chunk: str, after: ChunkState, wait: float) -> None:
        # By the database's clock, which says when the window is over.
        window = self._settings.doubt_window if after.state in ("in_doubt", "held") else None
        values = (after.state, after.resends, wait, after.reason, window, after.batch_id, after.claimed)
        await connection.execute(_sql["keep"], chunk, *values)
