"""What the log makes of a chunk that a restored queue remembers otherwise. Pure.

The log's events of a chunk lie in several partitions, so nothing here depends on their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from everyrun.log import events
from everyrun.projection.rules.merge import instant
from everyrun.submission.dispatch.protocol import FILES_LOST_UNSENT, ChunkState, State


class Logged(msgspec.Struct, frozen=True):
    """What the log says of a chunk: how its newest attempt ended, and of all of them what forbids sending it again."""

    attempt: int
    state: State
    resends: int = 0
    batch_id: str | None = None
    call_deadline: datetime | None = None
    #: Of what said so, as _TELLING has it.
    rank: int = 0
    #: What it was cut into: once it is cut it stays so. Then its submission is named too.
    parts: tuple[events.Part, ...] = ()
    submission_id: str | None = None


#: What an event says of its attempt, and which of several of one attempt is the more telling.
_TELLING: dict[Any, tuple[int, State]] = {
    events.BatchRequested: (0, "sending"),
    events.BatchInDoubt: (1, "in_doubt"),
    events.BatchReturned: (2, "waiting"),
    events.DoubtResent: (3, "waiting"),
    events.BatchRejected: (4, "refused"),
    events.BatchCut: (4, "cut"),
    events.DoubtDiscarded: (4, "refused"),
    events.BatchSubmitted: (5, "sent"),
    events.DoubtAdopted: (5, "sent"),
}


def read_chunks(found: Iterable[Any], logged: dict[str, Logged] | None = None) -> dict[str, Logged]:
    """By chunk what events of ``batches`` say of it, beside what others said that were read before (``logged``).

    Events of other things are passed over; none is kept.
    """
    logged = {} if logged is None else logged
    for event in found:
        if type(event) not in _TELLING:
            continue
        rank, state = _TELLING[type(event)]
        known = logged.get(event.chunk, Logged(0, "waiting"))
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


def take_over(chunk: ChunkState, logged: Logged) -> ChunkState:
    """The chunk's state by what it was and what the log says; itself where the log says nothing new.

    An attempt that the log knows is never waiting again because the queue forgot it; one that was taken is never sent
    again, whichever it was; what was given up stays counted.
    """
    given_up = logged.resends > chunk.resends
    after = replace(chunk, resends=max(chunk.resends, logged.resends), batch_id=chunk.batch_id or logged.batch_id)
    if logged.attempt > chunk.attempt:
        after = replace(after, attempt=logged.attempt, state=logged.state, claimed=False)
    elif logged.attempt == chunk.attempt and _ends(chunk.state, logged.state, given_up):
        after = replace(after, state=logged.state)
    if logged.parts:
        after = replace(after, state="cut")
    elif after.batch_id is not None and after.state != "sending":
        after = replace(after, state="sent")
    lost = after.state == "waiting" and after.files_lost
    if lost:
        after = replace(after, state="held")
    if after.state != "sending":
        after = replace(after, claimed=False, announced=False)
    if after != chunk:
        found = FILES_LOST_UNSENT if lost else "found in the log"
        after = replace(after, reason=None if after.state == "sent" else found)
    # That the log knows of the attempt is no news of what became of it.
    return replace(after, announced=after.state == "sending" and (chunk.announced or logged.attempt == after.attempt))


def _ends(state: State, logged: State, given_up: bool) -> bool:
    """Whether the log knows of an end of the attempt that the queue has not marked."""
    if logged == "sent":
        return state != "sent"
    if logged in ("refused", "cut"):
        return state in ("sending", "in_doubt", "held")
    if logged == "waiting":
        return state == "sending" or (given_up and state in ("in_doubt", "held"))
    return False
