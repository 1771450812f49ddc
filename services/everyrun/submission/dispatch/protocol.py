"""The dispatch protocol as one pure transition function: from a chunk's state and what happens to the state after.

What is said to the log is acknowledged before the new state is kept, so a crash between the two repeats an event
with the same id and loses none. tests/model checks every interleaving of it within small bounds.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from everyrun.errors import Conflict
from everyrun.submission.dispatch.classify import Blocked, InDoubt, Rejected, Returned, Taken, Unclear, Verdict
from everyrun.submission.dispatch.cutting import cut

#: Why a chunk is held whose files the restored queue does not have: Extend did not take it, or gave no sign of it.
FILES_LOST_UNSENT = (
    "the queue was restored from a backup that does not have this chunk, and the log shows its files without what "
    "opens them; Extend did not take it: repeat the upload with the same Idempotency-Key, or discard the chunk"
)
FILES_LOST_IN_DOUBT = (
    "the queue was restored from a backup that does not have this chunk, and the log shows its files without what "
    "opens them; no evidence came within the window: repeat the upload with the same Idempotency-Key, or discard the "
    "chunk"
)

State = Literal["waiting", "sending", "in_doubt", "held", "sent", "refused", "cut"]


class ChunkState(msgspec.Struct, frozen=True):
    """Where a chunk stands.

    ``resends`` counts the attempts given up without proof that they were not taken. ``batch_id`` is of an attempt that
    was taken: the chunk's own where it is sent, an earlier one's where it is sending. ``size`` counts its inputs.
    ``files_lost``: it cannot be sent, since the queue has its inputs from the log alone, which shows no query strings
    and passwords.

    Of a chunk that is sending: ``claimed`` if a worker may still begin the call, ``announced`` if the queue has read
    the attempt's batch-requested in the log.
    """

    state: State
    attempt: int = 0
    resends: int = 0
    batch_id: str | None = None
    reason: str | None = None
    size: int = 1
    claimed: bool = False
    announced: bool = False
    files_lost: bool = False


class Claimed(msgspec.Struct, frozen=True):
    """A worker takes the chunk to send it."""


class Unannounced(msgspec.Struct, frozen=True):
    """Kafka did not acknowledge batch-requested: nothing was sent."""


class Expired(msgspec.Struct, frozen=True):
    """The attempt's deadline passed before the call was begun: nothing was sent."""


class Answered(msgspec.Struct, frozen=True):
    """What the worker that made the attempt says of it; it may come when the attempt was given to doubt already."""

    attempt: int
    outcome: Verdict | Expired | Unannounced


class Lost(msgspec.Struct, frozen=True):
    """The attempt's call has ended by now, and nobody knows how: its worker is gone."""

    attempt: int


class Unclaimed(msgspec.Struct, frozen=True):
    """The claim of the attempt is taken away: a worker that has not begun the call by now never does."""

    attempt: int


class NeverAnnounced(msgspec.Struct, frozen=True):
    """The log, read to its end after the claim was taken away, has no batch-requested of the attempt.

    A worker looks for its claim after the log has acknowledged batch-requested, and before it calls. So no call was
    made, and none will be.
    """

    attempt: int


class Evidence(msgspec.Struct, frozen=True):
    """A run names this attempt: it was taken."""

    attempt: int
    batch_id: str
    run_id: str


class WindowPassed(msgspec.Struct, frozen=True):
    """No evidence came in the time in which it can come; ``witness`` is a run that names the chunk, but no batch."""

    attempt: int
    resends_allowed: int
    witness: str | None = None


class Adopted(msgspec.Struct, frozen=True):
    """A person named the batch, and this run of it names the attempt."""

    attempt: int
    batch_id: str
    run_id: str
    by: str
    why: str


class Resent(msgspec.Struct, frozen=True):
    """A person decided to send the chunk again."""

    by: str
    why: str


class Discarded(msgspec.Struct, frozen=True):
    """A person decided that the chunk is not sent again."""

    by: str
    why: str


Decision = Adopted | Resent | Discarded
Happening = Claimed | Answered | Unclaimed | NeverAnnounced | Lost | Evidence | WindowPassed | Decision

Kind = Literal[
    "batch-requested",
    "batch-returned",
    "batch-in-doubt",
    "batch-submitted",
    "batch-rejected",
    "batch-cut",
    "doubt-resent",
    "doubt-adopted",
    "doubt-discarded",
]


class Say(msgspec.Struct, frozen=True):
    """An event for ``batches``: its type, and the attempt it is of."""

    kind: Kind
    attempt: int


class Step(msgspec.Struct, frozen=True):
    """The state after, what to say before it is kept, and what is to be paused: the workflow, or the submission.

    ``parts`` are the chunks that a chunk was cut into, as the first and last place of each, from 0.
    """

    after: ChunkState
    say: tuple[Say, ...] = ()
    block: Literal["workflow", "submission"] | None = None
    parts: tuple[tuple[int, int], ...] = ()


class NotPossibleError(Conflict):
    """This cannot happen to a chunk in this state; it is left as it is."""


def step(chunk: ChunkState, happening: Happening) -> Step:
    """Return what a happening makes of a chunk. Raises NotPossibleError."""
    done = _step(chunk, happening)
    if done.after.state == "sending":
        return done
    return replace(done, after=replace(done.after, claimed=False, announced=False))


def _step(chunk: ChunkState, happening: Happening) -> Step:
    match happening:
        case Claimed() if chunk.state == "waiting" and not chunk.files_lost:
            after = replace(
                chunk, state="sending", attempt=chunk.attempt + 1, reason=None, claimed=True, announced=False
            )
            return Step(after, (Say("batch-requested", after.attempt),))
        case Answered():
            return _answered(chunk, happening)
        case Unclaimed() if chunk.state == "sending" and chunk.attempt == happening.attempt and not chunk.announced:
            return Step(replace(chunk, claimed=False))
        case NeverAnnounced() if chunk.state == "sending" and chunk.attempt == happening.attempt:
            if chunk.claimed or chunk.announced:
                raise NotPossibleError("the attempt may have been called")
            return replace(_returned(chunk, "its worker ended before it told the log"), say=())
        case Lost() if chunk.state == "sending" and chunk.attempt == happening.attempt:
            return _unknown(chunk, "in_doubt", "the worker ended during the call")
        case Evidence():
            return _proved(chunk, happening.attempt, happening.batch_id, "batch-submitted")
        case Adopted():
            return _proved(chunk, happening.attempt, happening.batch_id, "doubt-adopted")
        case WindowPassed() if chunk.state == "in_doubt" and chunk.attempt == happening.attempt:
            if happening.witness is not None:
                return Step(replace(chunk, state="held", reason=f"{happening.witness} names it, but no batch"))
            if chunk.files_lost:
                return Step(replace(chunk, state="held", reason=FILES_LOST_IN_DOUBT))
            if chunk.resends >= happening.resends_allowed:
                return Step(replace(chunk, state="held", reason="in doubt, and sent again as often as is allowed"))
            return _again(chunk, "no evidence within the window")
        case Resent() if chunk.state in ("in_doubt", "held") and not chunk.files_lost:
            return _again(chunk, happening.why)
        case Discarded() if chunk.state in ("in_doubt", "held"):
            after = replace(chunk, state="refused", reason=f"discarded by {happening.by}: {happening.why}")
            return Step(after, (Say("doubt-discarded", chunk.attempt),))
        case _:
            raise NotPossibleError(f"{type(happening).__name__} in state {chunk.state}")


def refilled(chunk: ChunkState) -> ChunkState:
    """Return the chunk with its files there again. What was held for them alone goes on from where it was held.

    So in a doubt evidence is looked for once more before the chunk is sent again.
    """
    goes_on: dict[str | None, State] = {FILES_LOST_UNSENT: "waiting", FILES_LOST_IN_DOUBT: "in_doubt"}
    if chunk.state == "held" and chunk.reason in goes_on:
        reason = "the upload was repeated after the queue had lost its files"
        return replace(chunk, files_lost=False, state=goes_on[chunk.reason], reason=reason)
    return replace(chunk, files_lost=False)


def _answered(chunk: ChunkState, answered: Answered) -> Step:
    outcome = answered.outcome
    present = answered.attempt == chunk.attempt
    settles = not isinstance(outcome, InDoubt | Unclear)
    if present and (chunk.state == "sending" or (chunk.state == "in_doubt" and settles)):
        return _ended(chunk, outcome)
    if isinstance(outcome, Taken):
        return _proved(chunk, answered.attempt, outcome.batch_id, "batch-submitted")
    raise NotPossibleError(f"{type(outcome).__name__} of attempt {answered.attempt} in state {chunk.state}")


def _ended(chunk: ChunkState, outcome: Verdict | Expired | Unannounced) -> Step:
    match outcome:
        case Taken():
            after = replace(chunk, state="sent", batch_id=chunk.batch_id or outcome.batch_id, reason=None)
            return Step(after, (Say("batch-submitted", chunk.attempt),))
        case Rejected() if chunk.resends or chunk.batch_id:
            # An earlier attempt was given up, not disproved: refusing or cutting its inputs could be a lie.
            reason = f"refused ({outcome.status} {outcome.code}), but an earlier attempt may have been taken"
            return _returned(chunk, reason, "held")
        case Rejected() if chunk.size > 1:
            # Nothing was made of any input, and it is not known which of them are refused.
            reason = f"refused, and cut: {outcome.status} {outcome.code}: {outcome.message}"
            after = replace(chunk, state="cut", reason=reason)
            return Step(after, (Say("batch-cut", chunk.attempt),), parts=cut(chunk.size, outcome.named))
        case Rejected():
            after = replace(chunk, state="refused", reason=f"{outcome.status} {outcome.code}: {outcome.message}")
            return Step(after, (Say("batch-rejected", chunk.attempt),))
        case Returned():
            return _returned(chunk, outcome.reason)
        case Blocked():
            return replace(_returned(chunk, outcome.reason), block=outcome.scope)
        case Expired():
            return _returned(chunk, "the deadline passed before the call was begun")
        case Unannounced():
            return replace(_returned(chunk, "Kafka did not acknowledge batch-requested"), say=())
        case Unclear():
            return _unknown(chunk, "held", outcome.reason)
        case InDoubt():
            return _unknown(chunk, "in_doubt", outcome.reason)


def _returned(chunk: ChunkState, reason: str, state: State = "waiting") -> Step:
    """The attempt was not taken. Where an earlier one was, the chunk is not sent again."""
    if chunk.files_lost and state == "waiting":
        state, reason = "held", FILES_LOST_UNSENT
    after = replace(chunk, state="sent" if chunk.batch_id else state, reason=None if chunk.batch_id else reason)
    return Step(after, (Say("batch-returned", chunk.attempt),))


def _unknown(chunk: ChunkState, state: State, reason: str) -> Step:
    """Nobody knows whether the attempt was taken. Where an earlier one was, the chunk is not sent again."""
    after = replace(chunk, state="sent" if chunk.batch_id else state, reason=None if chunk.batch_id else reason)
    return Step(after, (Say("batch-in-doubt", chunk.attempt),))


def _again(chunk: ChunkState, reason: str) -> Step:
    after = replace(chunk, state="waiting", resends=chunk.resends + 1, reason=reason)
    return Step(after, (Say("doubt-resent", chunk.attempt),))


def _proved(chunk: ChunkState, attempt: int, batch_id: str, kind: Kind) -> Step:
    """The attempt was taken, whatever was thought of it: the present one, or one given up, which makes two batches."""
    if attempt > chunk.attempt:
        raise NotPossibleError(f"attempt {attempt} of a chunk that had {chunk.attempt}")
    say = (Say(kind, attempt),)
    if chunk.state in ("sent", "cut"):
        # A chunk that was cut stays so: its inputs live on in its parts.
        return Step(chunk, say)
    if chunk.state == "sending" and attempt < chunk.attempt:
        # The present attempt's call ends by itself; no further one is made.
        return Step(replace(chunk, batch_id=batch_id), say)
    return Step(replace(chunk, state="sent", batch_id=chunk.batch_id or batch_id, reason=None), say)
