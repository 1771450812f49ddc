"""The dispatch protocol as one pure transition function: from a chunk's state and what happens to the state after.

What is said to the log is acknowledged before the new state is kept, so a crash between the two repeats an event
with the same id and loses none.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from everyrun.submission.classify import Blocked, InDoubt, Rejected, Returned, Taken, Unclear, Verdict

State = Literal["waiting", "sending", "in_doubt", "held", "sent", "refused"]


class ChunkState(msgspec.Struct, frozen=True):
    """Where a chunk stands. ``resends`` counts the attempts given up after their window."""

    state: State
    attempt: int = 0
    resends: int = 0
    batch_id: str | None = None
    reason: str | None = None


class Claimed(msgspec.Struct, frozen=True):
    """A worker takes the chunk to send it."""


class Expired(msgspec.Struct, frozen=True):
    """The attempt's deadline passed before the call was begun: nothing was sent."""


class Lost(msgspec.Struct, frozen=True):
    """The attempt's call has ended by now, and nobody knows how: its worker is gone."""


class Evidence(msgspec.Struct, frozen=True):
    """A run names this attempt: it was taken."""

    attempt: int
    batch_id: str
    run_id: str


class WindowPassed(msgspec.Struct, frozen=True):
    """No evidence came in the time in which it can come."""

    resends_allowed: int


Happening = Claimed | Expired | Lost | Evidence | WindowPassed | Verdict


class Say(msgspec.Struct, frozen=True):
    """An event for ``batches``: its type, and the attempt it is of."""

    kind: Literal[
        "batch-requested", "batch-returned", "batch-in-doubt", "doubt-resent", "batch-submitted", "batch-rejected"
    ]
    attempt: int


class Step(msgspec.Struct, frozen=True):
    """The state after, what to say before it is kept, and whether the workflow is to be paused."""

    after: ChunkState
    say: tuple[Say, ...] = ()
    block: bool = False


class NotPossibleError(Exception):
    """This cannot happen to a chunk in this state; it is left as it is."""


def step(chunk: ChunkState, happening: Happening) -> Step:
    """What a happening makes of a chunk. Raises NotPossibleError."""
    match happening:
        case Evidence():
            return _evidence(chunk, happening)
        case Claimed() if chunk.state == "waiting":
            after = replace(chunk, state="sending", attempt=chunk.attempt + 1, reason=None)
            return Step(after, (Say("batch-requested", after.attempt),))
        case WindowPassed() if chunk.state == "in_doubt":
            if chunk.resends >= happening.resends_allowed:
                return Step(replace(chunk, state="held", reason="in doubt, and sent again as often as is allowed"))
            after = replace(chunk, state="waiting", resends=chunk.resends + 1, reason=None)
            return Step(after, (Say("doubt-resent", chunk.attempt),))
        case Expired() | Lost() | Taken() | Rejected() | Returned() | Blocked() | Unclear() | InDoubt():
            if chunk.state != "sending":
                raise NotPossibleError(f"{type(happening).__name__} in state {chunk.state}")
            return _ended(chunk, happening)
        case _:
            raise NotPossibleError(f"{type(happening).__name__} in state {chunk.state}")


def _ended(chunk: ChunkState, happening: Expired | Lost | Verdict) -> Step:
    attempt = chunk.attempt
    match happening:
        case Taken():
            after = replace(chunk, state="sent", batch_id=happening.batch_id, reason=None)
            return Step(after, (Say("batch-submitted", attempt),))
        case Rejected() if chunk.resends:
            # An earlier attempt was given up, not disproved: refusing its inputs could be a lie.
            reason = f"refused ({happening.status} {happening.code}), but an earlier attempt may have been taken"
            return Step(replace(chunk, state="held", reason=reason), (Say("batch-returned", attempt),))
        case Rejected():
            after = replace(chunk, state="refused", reason=f"{happening.status} {happening.code}: {happening.message}")
            return Step(after, (Say("batch-rejected", attempt),))
        case Returned():
            return Step(replace(chunk, state="waiting", reason=happening.reason), (Say("batch-returned", attempt),))
        case Expired():
            reason = "the deadline passed before the call was begun"
            return Step(replace(chunk, state="waiting", reason=reason), (Say("batch-returned", attempt),))
        case Blocked():
            after = replace(chunk, state="waiting", reason=happening.reason)
            return Step(after, (Say("batch-returned", attempt),), block=True)
        case Unclear():
            return Step(replace(chunk, state="held", reason=happening.reason), (Say("batch-in-doubt", attempt),))
        case InDoubt():
            return Step(replace(chunk, state="in_doubt", reason=happening.reason), (Say("batch-in-doubt", attempt),))
        case Lost():
            reason = "the worker ended during the call"
            return Step(replace(chunk, state="in_doubt", reason=reason), (Say("batch-in-doubt", attempt),))


def _evidence(chunk: ChunkState, evidence: Evidence) -> Step:
    """The attempt was taken, whatever was thought of it: the present one, or one given up, which makes two batches."""
    if evidence.attempt > chunk.attempt:
        raise NotPossibleError(f"evidence of attempt {evidence.attempt}, but there were {chunk.attempt}")
    say = (Say("batch-submitted", evidence.attempt),)
    if chunk.state in ("sent", "sending"):
        # Its own call ends by itself; this one is told of all the same, so that its runs are matched.
        return Step(chunk, say)
    return Step(replace(chunk, state="sent", batch_id=evidence.batch_id, reason=None), say)
