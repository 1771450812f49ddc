"""Merge what the log knows about a chunk into the state that a restored queue has of the chunk. Pure.

The events of a chunk are in several partitions, so they are not read in a fixed order. The result does not depend on
the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from everyrun.log import events
from everyrun.projection.rules.merge import instant
from everyrun.submission.dispatch.protocol import FILES_LOST_UNSENT, ChunkState, StateName


class LoggedChunk(msgspec.Struct, frozen=True):
    """A chunk as the log knows it: the outcome of its newest attempt, and whatever forbids sending the chunk again."""

    attempt: int
    state: StateName
    resends: int = 0
    batch_id: str | None = None
    call_deadline: datetime | None = None
    #: The rank in _OUTCOMES of the event that gave the state.
    rank: int = 0
    #: Only for a chunk that was cut: its parts, and the id of its submission. Such a chunk stays cut.
    parts: tuple[events.Part, ...] = ()
    submission_id: str | None = None


#: For each type of event, its rank, and the state that it gives to its attempt. If an attempt has several events, the
#: one with the highest rank decides.
_OUTCOMES: dict[Any, tuple[int, StateName]] = {
    events.BatchRequested: (0, "sending"),
    events.BatchInDoubt: (1, "in_doubt"),
    events.BatchReturned: (2, "waiting"),
    events.DoubtResent: (3, "waiting"),
    events.BatchRejected: (4, "refused"),
    events.BatchCut: (4, "cut"),
    events.DoubtDiscarded: (4, "refused"),
    events.BatchCancelled: (4, "cancelled"),
    events.BatchSubmitted: (5, "submitted"),
    events.DoubtAdopted: (5, "submitted"),
}


def read_chunks(found: Iterable[Any], logged: dict[str, LoggedChunk] | None = None) -> dict[str, LoggedChunk]:
    """Add events of ``batches`` to ``logged``, which contains the chunks by id, and return ``logged``.

    Events of other types are skipped.
    """
    logged = {} if logged is None else logged
    for event in found:
        if type(event) not in _OUTCOMES:
            continue
        rank, state = _OUTCOMES[type(event)]
        known = logged.get(event.chunk, LoggedChunk(0, "waiting"))
        if (event.attempt, rank) >= (known.attempt, known.rank):
            known = replace(known, attempt=event.attempt, state=state, rank=rank)
        deadline = instant(getattr(event, "deadline", None))
        if deadline is not None and event.attempt == known.attempt:
            known = replace(known, call_deadline=deadline)
        if isinstance(event, events.BatchCut):
            known = replace(known, parts=tuple(event.parts), submission_id=event.submission_id)
        logged[event.chunk] = replace(
            known,
            resends=max(known.resends, getattr(event, "resends", 0)),
            batch_id=known.batch_id or getattr(event, "batch_id", None),
        )
    return logged


def merge_logged(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    """Return the state of a chunk, updated with what the log knows.

    If the log knows nothing new, the state is unchanged.

    If the queue has lost an attempt, the attempt is taken from the log, so that the chunk is not sent as if there had
    been no attempt. A chunk with any accepted attempt is never sent again. Attempts that were given up still count as
    resends.
    """
    given_up = logged.resends > chunk.resends
    after = replace(chunk, resends=max(chunk.resends, logged.resends), batch_id=chunk.batch_id or logged.batch_id)
    if logged.attempt > chunk.attempt:
        after = replace(after, attempt=logged.attempt, state=logged.state, claimed=False)
    elif logged.attempt == chunk.attempt and _knows_outcome(chunk.state, logged.state, given_up):
        after = replace(after, state=logged.state)
    if logged.parts:
        after = replace(after, state="cut")
    elif after.batch_id is not None and after.state != "sending":
        after = replace(after, state="submitted")
    lost = after.state == "waiting" and after.files_lost and after.cancelling is None
    if lost:
        after = replace(after, state="held")
    if after.state != "sending":
        after = replace(after, claimed=False, announced=False)
    if after != chunk:
        found = FILES_LOST_UNSENT if lost else "found in the log"
        after = replace(after, reason=None if after.state == "submitted" else found)
    # `announced` says only that the log has the attempt. That is not a new outcome, so ``reason`` stays the same.
    return replace(after, announced=after.state == "sending" and (chunk.announced or logged.attempt == after.attempt))


def _knows_outcome(state: StateName, logged: StateName, given_up: bool) -> bool:
    """Return True if the log knows an outcome of the attempt that the queue does not know."""
    if logged == "submitted":
        return state != "submitted"
    if logged in ("refused", "cut"):
        return state in ("sending", "in_doubt", "held")
    if logged == "cancelled":
        return state in ("waiting", "sending", "in_doubt", "held")
    if logged == "waiting":
        return state == "sending" or (given_up and state in ("in_doubt", "held"))
    return False
