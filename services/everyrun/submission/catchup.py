"""The queue never outruns the log: attempts that the log knows and a restored queue does not are taken over.

So an input of a logged attempt is never claimed as if it were waiting, and nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from everyrun.log import events
from everyrun.log.reader import end_offsets
from everyrun.log.upcast import TooNewError, upcast
from everyrun.projection.decode import LogRecord
from everyrun.projection.merge import instant
from everyrun.projection.reader import read_range
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.registering import keep
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
_decode = msgspec.json.Decoder(events.BatchEvent).decode


class Logged(msgspec.Struct, frozen=True):
    """What the log says of the newest attempt at a chunk."""

    attempt: int
    state: str
    deadline: datetime | None = None
    batch_id: str | None = None


#: What an event says of its attempt, and which of several of one attempt is the more telling.
_STATES: dict[Any, tuple[int, str]] = {
    events.BatchRequested: (0, "sending"),
    events.BatchInDoubt: (1, "in_doubt"),
    events.BatchReturned: (2, "waiting"),
    events.DoubtResent: (2, "waiting"),
    events.BatchRejected: (3, "refused"),
    events.BatchSubmitted: (4, "sent"),
}


def newest(found: Iterable[Any], call_time: timedelta) -> dict[str, Logged]:
    """Of each chunk in the log its newest attempt; ``call_time`` after its deadline a call has ended."""
    best: dict[str, tuple[int, int, Logged]] = {}
    for event in found:
        if type(event) not in _STATES:
            continue
        rank, state = _STATES[type(event)]
        deadline = instant(getattr(event, "deadline", None))
        logged = Logged(event.attempt, state, deadline and deadline + call_time, getattr(event, "batch_id", None))
        known = best.get(event.chunk)
        if known is None or (event.attempt, rank) >= known[:2]:
            best[event.chunk] = (event.attempt, rank, logged)
    return {chunk: logged for chunk, (_, _, logged) in best.items()}


async def catch_up(settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> int:
    """Read ``batches`` from where the queue last was to its end, and take over what is new; how many chunks changed.

    Raises aiokafka.errors.KafkaError and asyncpg.PostgresError.
    """
    known = {row["partition"]: row for row in await pool.fetch(_sql["positions"])}
    ends = {partition: end for (_, partition), end in (await end_offsets(settings, ("batches",))).items()}
    found: list[Any] = []
    for partition, end in sorted(ends.items()):
        position = known.get(partition)
        start = position["next_offset"] if position and position["cluster_id"] == cluster_id else 0
        if start < end:
            async for poll in read_range(settings, "batches", partition, start, end):
                found += [event for record in poll.records if (event := _event(record)) is not None]
    logged = newest(found, timedelta(seconds=settings.call_timeout + 2))
    window = datetime.now(UTC) + timedelta(seconds=settings.doubt_window)
    rows = [
        (
            chunk,
            item.attempt,
            item.state,
            item.deadline or (window if item.state == "in_doubt" else None),
            item.batch_id,
        )
        for chunk, item in logged.items()
    ]
    async with pool.acquire() as connection, connection.transaction():
        done = "UPDATE 0"
        if rows:
            columns = [list(column) for column in zip(*rows, strict=True)]
            done = await connection.execute(_sql["attempts_logged"], *columns)
        for event in found:
            if isinstance(event, events.BatchRegistered):
                await keep(connection, event, announced=True)
        for partition, end in ends.items():
            await connection.execute(_sql["move_position"], partition, end, cluster_id)
    changed = int(done.split()[1])
    if changed:
        _log.warning("attempts were in the log that the queue did not know", chunks=changed)
    return changed


def _event(record: LogRecord) -> Any:
    try:
        return _decode(upcast(record.headers, record.value or b""))
    except (msgspec.DecodeError, UnicodeDecodeError, TooNewError):
        return None
