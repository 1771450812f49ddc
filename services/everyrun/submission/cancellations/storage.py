"""Store cancellations in the queue, and flag the chunks whose inputs they contain."""

from __future__ import annotations

from typing import Any

from everyrun.log import events
from everyrun.projection.rules.merge import instant
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.cancellations.scope import multirange
from everyrun.submission.dispatch.transitions import flag_chunks

_sql = beside(__file__, "cancellations.sql")


async def store(connection: Any, event: events.CancellationRequested, settings: Settings) -> None:
    """Store a cancellation whose event is in the log, unless the queue has it, and flag its chunks.

    Does nothing if the queue does not have the submission. Must be called in a transaction.
    """
    await connection.execute(
        _sql["insert_cancellation"],
        event.cancellation_id,
        event.submission_id,
        event.scope,
        event.batch_id,
        multirange((part.first_position, part.last_position) for part in event.positions),
        event.by,
        event.reason,
        instant(event.requested_at),
    )
    await flag_chunks(connection, [event.submission_id], settings)
