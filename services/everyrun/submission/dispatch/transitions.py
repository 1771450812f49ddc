"""Apply a trigger to a chunk: lock its row, compute the step, publish the events of the step, and store the new state.

The lock ensures that only one process at a time changes a chunk, and that no step starts from an outdated state. The
new state is stored last, after Kafka has acknowledged the events.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import asyncpg
import msgspec
from msgspec.structs import replace

from everyrun.errors import NotFound
from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.log.keys import retry_of
from everyrun.log.producer import Log
from everyrun.settings import Settings
from everyrun.store.sql import Row, beside
from everyrun.submission.decisions import pauses
from everyrun.submission.dispatch import event_records
from everyrun.submission.dispatch.classify import Accepted
from everyrun.submission.dispatch.event_records import CancelOrder, ChunkRow
from everyrun.submission.dispatch.protocol import (
    FILES_LOST_UNSENT,
    Answered,
    Cancelled,
    ChunkState,
    EvidenceFound,
    NotPossibleError,
    Step,
    Trigger,
    step,
)
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "dispatch.sql")


class UnknownChunkError(NotFound):
    """The queue has no such chunk."""


def chunk_state(row: Row) -> ChunkState:
    """Return the state of a chunk from its row in the queue."""
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
        cancelling=row["cancellation"],
    )


async def read_inputs(connection: Any, submission_id: str, first: int, last: int) -> list[events.Input]:
    """Return the inputs of a submission at the queue's positions from ``first`` to ``last``.

    A new try has a position of its own in the queue; the returned input has its position in the submission. Presigned
    URLs and passwords are not removed from the inputs.
    """
    return [
        events.Input(
            input_id=f"{submission_id}:{row['external_id']}",
            external_id=row["external_id"],
            position=row["position"],
            file=msgspec.json.decode(row["file"]),
            metadata=msgspec.json.decode(row["metadata"]),
        )
        for row in await connection.fetch(_sql["chunk_inputs"], submission_id, first, last)
    ]


async def inputs_of(connection: Any, row: ChunkRow) -> list[events.Input]:
    """Return the inputs of a chunk, as ``read_inputs`` does."""
    return await read_inputs(connection, row.submission_id, row.first_position, row.last_position)


async def insert_parts(connection: Any, cuts: Iterable[tuple[str, Iterable[events.Part]]]) -> list[str]:
    """Insert the parts of chunks that were cut; return the ids of the parts that are new.

    For each chunk that was cut, ``cuts`` contains the id of its submission, and its parts. Parts that exist already are
    skipped, and so are parts of a submission that the queue does not have.
    """
    rows = [
        (part.chunk, submission_id, part.first_position, part.last_position, retry_of(part.chunk))
        for submission_id, parts in cuts
        for part in parts
    ]
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [row["chunk"] for row in await connection.fetch(_sql["insert_parts"], *columns)]


async def flag_chunks(
    connection: Any, submissions: Iterable[str], settings: Settings, chunks: list[str] | None = None
) -> None:
    """Flag the chunks of these submissions whose inputs were cancelled and that have no outcome yet.

    If ``chunks`` is given, flag only chunks with these ids.

    A flagged chunk is never claimed. A chunk is flagged if all its inputs were cancelled, or if it waits and some were:
    it is then cut. Must be called in a transaction.
    """
    ids, window = sorted(submissions), settings.doubt_window
    # If a chunk was being cut, the first statement waits until its parts are inserted, but does not see them. So look
    # again.
    while locked := [row["chunk"] for row in await connection.fetch(_sql["lock_cancelled"], ids, chunks)]:
        if not await connection.fetch(_sql["flag_chunks"], locked, window, FILES_LOST_UNSENT):
            return


async def _order_of(connection: Any, done: Step) -> CancelOrder | None:
    """Return the cancellation that a step's batch-cancelled is about; None for a step without this event."""
    if all(event.kind != "batch-cancelled" for event in done.events):
        return None
    # A statement of its own: one that waited for the lock of the chunk may not see a cancellation committed meanwhile.
    row = await connection.fetchrow(_sql["cancellation_of"], done.after.cancelling)
    return CancelOrder(row["cancellation_id"], row["requested_by"], row["reason"])


class Transitions:
    """Apply triggers to the chunks of the queue."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, log: Log) -> None:
        self._settings = settings
        self._pool = pool
        self._log = log

    async def apply(
        self,
        chunk: str,
        trigger: Trigger,
        *,
        published: bool = False,
        wait: float = 0.0,
        incarnation: str | None = None,
    ) -> Step:
        """Apply a trigger to a chunk, and return the step.

        If ``published`` is true, the log already has the events of the step. If the chunk waits after the step, workers
        cannot claim it for ``wait`` seconds.

        ``incarnation`` is the incarnation of the database in which the attempt was claimed. If the database is in
        another incarnation now, the trigger is not possible: the attempt with this number may belong to another worker.

        After NotPossibleError or UnknownChunkError, nothing was published or changed. After KafkaError or one of
        asyncpg's errors, the events may have been published, but nothing was stored. It is then safe to retry.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            locked = await connection.fetchrow(_sql["lock_chunk"], chunk)
            if locked is None:
                raise UnknownChunkError(f"there is no chunk {chunk}")
            if incarnation is not None and locked["incarnation"] != incarnation:
                raise NotPossibleError("the database changed since the claim")
            row, before = ChunkRow.of(locked), replace(chunk_state(locked), whole=locked["whole"])
            done = step(before, trigger)
            if done.events and not published:
                with_inputs = any(event.kind in event_records.WITH_INPUTS for event in done.events)
                inputs = await inputs_of(connection, row) if with_inputs else []
                order = await _order_of(connection, done)
                await self._publish(row, done, trigger, inputs, order)
            if done.after != before:
                await self._store(connection, chunk, done.after, wait)
            if done.parts:
                parts = await insert_parts(connection, [(row.submission_id, event_records.parts_of(row, done))])
                await flag_chunks(connection, [row.submission_id], self._settings, parts)
            if done.pause is not None:
                kind: Literal["workflow", "submission"] = "workflow" if done.pause == "workflow" else "submission"
                target = pauses.PauseTarget(kind, locked[f"{kind}_id"])
                why, of_objects = done.after.reason or "", done.pause == "objects"
                await pauses.pause_blocked(connection, self._log, target, why, objects=of_objects)
        after = done.after
        if after.state not in ("submitted", "waiting") or after.reason:
            _log.info("chunk", chunk=chunk, attempt=after.attempt, state=after.state, reason=after.reason)
        if isinstance(trigger, Answered):
            hit("dispatcher.after_row")
        elif isinstance(trigger, EvidenceFound):
            hit("adopt.after_row")
        return done

    async def publish_accepted(self, row: ChunkRow, inputs: list[events.Input], answered: Answered) -> None:
        """Publish that Extend accepted the batch. This remains true even if the queue was restored since the claim."""
        assert isinstance(answered.outcome, Accepted)
        sending = ChunkState("sending", row.attempt)
        await self._publish(row, step(sending, answered), answered, inputs)

    async def _publish(
        self,
        row: ChunkRow,
        done: Step,
        trigger: Trigger,
        inputs: list[events.Input],
        order: CancelOrder | None = None,
    ) -> None:
        if isinstance(trigger, Answered):
            hit("dispatcher.before_produce")
        elif isinstance(trigger, EvidenceFound):
            hit("adopt.before_produce")
        await self._log.append(event_records.step_records(row, done, trigger, inputs, datetime.now(UTC), order))
        if isinstance(trigger, Answered):
            hit("dispatcher.after_produce")
        elif isinstance(trigger, EvidenceFound):
            hit("adopt.after_produce")
        elif isinstance(trigger, Cancelled):
            hit("cancel.after_produce")

    async def _store(self, connection: Any, chunk: str, after: ChunkState, wait: float) -> None:
        # The window is measured by the database's clock, which also decides when the window is over.
        window = self._settings.doubt_window if after.state in ("in_doubt", "held") else None
        values = (after.state, after.resends, wait, after.reason, window, after.batch_id, after.claimed)
        await connection.execute(_sql["store_state"], chunk, *values)
