"""The dispatch protocol as one pure transition function: a chunk's state and a trigger give the next state.

A step is first published as events, and then the queue stores the new state. So a crash in between loses no event. At
worst, an event is published again, with the same id. tests/model checks every interleaving within small bounds.

The module exceeds 300 lines so that all rules about a chunk can be read in one place.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from everyrun.errors import Conflict
from everyrun.submission.chunks import Range, cut_refused
from everyrun.submission.dispatch.classify import (
    Accepted,
    Blocked,
    BlockedScope,
    InDoubt,
    Refused,
    Returned,
    Unclear,
    Verdict,
)

#: The reasons of a chunk that is held because a restored queue lacks its files. The first is for a chunk that Extend
#: did not accept. The second is for a chunk in doubt, if there was no evidence that Extend accepted it.
FILES_LOST_UNSENT = (
    "the queue was restored from a backup without this chunk, and the log shows its files without query strings and "
    "passwords. Extend did not accept it: repeat the upload with the same Idempotency-Key, or discard the chunk"
)
FILES_LOST_IN_DOUBT = (
    "the queue was restored from a backup without this chunk, and the log shows its files without query strings and "
    "passwords. No evidence came within the window: repeat the upload with the same Idempotency-Key, or discard the "
    "chunk"
)

#: The reason of a chunk that was cut, although Extend did not refuse it.
CUT_IN_PART = "cut, because only some of its inputs were cancelled"

StateName = Literal["waiting", "sending", "in_doubt", "held", "submitted", "refused", "cut", "cancelled"]


class ChunkState(msgspec.Struct, frozen=True):
    """The state of a chunk.

    - ``resends``: the number of attempts that were in doubt and given up.
    - ``batch_id``: the batch of the first attempt that is known to be accepted. A chunk that is sending can
      have one too, from an earlier attempt.
    - ``size``: the number of inputs.
    - ``claimed``: only for a chunk that is sending. True if a worker may still begin the call.
    - ``announced``: only for a chunk that is sending. True if the queue has read the attempt's event
      batch-requested from the log.
    - ``files_lost``: true if the inputs were restored from the log, which does not contain query strings and passwords.
      Such a chunk cannot be sent.
    - ``cancelling``: the id of the cancellation that a person requested, or None. No new attempt of such a chunk
      begins. If no attempt turns out to be accepted, the chunk becomes cancelled. A waiting chunk can have a
      cancellation of only some of its inputs. It is then cut.
    - ``whole``: true if the chunk is not cut when Extend refuses it, because its caller expects that Extend accepts or
      refuses all inputs together.
    """

    state: StateName
    attempt: int = 0
    resends: int = 0
    batch_id: str | None = None
    reason: str | None = None
    size: int = 1
    claimed: bool = False
    announced: bool = False
    files_lost: bool = False
    cancelling: str | None = None
    whole: bool = False


class Claimed(msgspec.Struct, frozen=True):
    """A worker claims the chunk in order to send it.

    The queue does this step itself, in the SQL function ``everyrun_queue.claim``. Tests compare that function with this
    module.
    """


class Unannounced(msgspec.Struct, frozen=True):
    """The attempt ended before Kafka had acknowledged batch-requested, so nothing was sent. ``reason`` says why."""

    reason: str = "Kafka did not acknowledge batch-requested"


class Expired(msgspec.Struct, frozen=True):
    """The deadline passed before the call began, so nothing was sent."""


class Answered(msgspec.Struct, frozen=True):
    """The worker of the attempt reports its outcome.

    The attempt may already be in doubt by then, if the answer came late.
    """

    attempt: int
    outcome: Verdict | Expired | Unannounced


class WorkerLost(msgspec.Struct, frozen=True):
    """The worker of the attempt has ended. Its call has ended too, with an unknown outcome."""

    attempt: int


class ClaimRevoked(msgspec.Struct, frozen=True):
    """The claim is revoked: if the worker has not begun the call by now, it will never begin it."""

    attempt: int


class NeverAnnounced(msgspec.Struct, frozen=True):
    """The log has no batch-requested of the attempt. The log was read to its end after the claim was revoked.

    A worker first waits until Kafka has acknowledged batch-requested, then checks its claim, and only then calls
    Extend. So there was no call, and there will be none.
    """

    attempt: int


class EvidenceFound(msgspec.Struct, frozen=True):
    """A run names this attempt in its reserved key, so Extend accepted the attempt."""

    attempt: int
    batch_id: str
    run_id: str


class WindowPassed(msgspec.Struct, frozen=True):
    """The window has passed without evidence that Extend accepted the attempt.

    ``resends_allowed`` is the maximum number of resends of a chunk. ``witness`` is the id of a run that names the chunk
    but is in no known batch. None if there is no such run.
    """

    attempt: int
    resends_allowed: int
    witness: str | None = None


class Adopted(msgspec.Struct, frozen=True):
    """A person named the batch, and the run ``run_id`` of that batch names the attempt."""

    attempt: int
    batch_id: str
    run_id: str
    by: str
    why: str


class Resent(msgspec.Struct, frozen=True):
    """A person decided to resend the chunk."""

    by: str
    why: str


class Discarded(msgspec.Struct, frozen=True):
    """A person decided never to resend the chunk."""

    by: str
    why: str


class CancelRequested(msgspec.Struct, frozen=True):
    """A person requested to cancel all inputs of the chunk or, if the chunk waits, some of them.

    The queue does this step for many chunks at once, in the SQL statement ``flag_chunks``. Tests compare that statement
    with this module.
    """

    cancellation_id: str


class CutRequested(msgspec.Struct, frozen=True):
    """Only some inputs of the chunk were cancelled. Each of the ``parts`` has only inputs that were, or only others."""

    parts: tuple[Range, ...]


class Cancelled(msgspec.Struct, frozen=True):
    """A chunk whose cancellation was requested does not wait any longer."""


DoubtDecision = Adopted | Resent | Discarded
Cancellation = CancelRequested | CutRequested | Cancelled
Trigger = (
    Claimed
    | Answered
    | ClaimRevoked
    | NeverAnnounced
    | WorkerLost
    | EvidenceFound
    | WindowPassed
    | DoubtDecision
    | Cancellation
)

EventKind = Literal[
    "batch-requested",
    "batch-returned",
    "batch-in-doubt",
    "batch-submitted",
    "batch-rejected",
    "batch-cut",
    "doubt-resent",
    "doubt-adopted",
    "doubt-discarded",
    "batch-cancelled",
]


class StepEvent(msgspec.Struct, frozen=True):
    """An event to publish to ``batches``: its type, and the attempt that it is about."""

    kind: EventKind
    attempt: int


class Step(msgspec.Struct, frozen=True):
    """The next state of a chunk, the events to publish before that state is stored, and what to pause.

    ``parts`` are the parts of a chunk that was cut, as ranges of indexes of its inputs.
    """

    after: ChunkState
    events: tuple[StepEvent, ...] = ()
    pause: BlockedScope | None = None
    parts: tuple[Range, ...] = ()


class NotPossibleError(Conflict):
    """The trigger is not possible in the state of the chunk. The state does not change."""


def step(chunk: ChunkState, trigger: Trigger) -> Step:
    """Return the step that the trigger causes. Raises NotPossibleError if the state does not allow the trigger."""
    done = _step(chunk, trigger)
    if chunk.cancelling is not None and done.after.state == "waiting":
        done = _cancelled(done)
    if done.after.state == "sending":
        return done
    return replace(done, after=replace(done.after, claimed=False, announced=False))


def _step(chunk: ChunkState, trigger: Trigger) -> Step:
    match trigger:
        case Claimed() if chunk.state == "waiting" and not chunk.files_lost and chunk.cancelling is None:
            after = replace(
                chunk, state="sending", attempt=chunk.attempt + 1, reason=None, claimed=True, announced=False
            )
            return Step(after, (StepEvent("batch-requested", after.attempt),))
        case Answered():
            return _answered(chunk, trigger)
        case ClaimRevoked() if chunk.state == "sending" and chunk.attempt == trigger.attempt and not chunk.announced:
            return Step(replace(chunk, claimed=False))
        case NeverAnnounced() if chunk.state == "sending" and chunk.attempt == trigger.attempt:
            if chunk.claimed or chunk.announced:
                raise NotPossibleError("the worker of the attempt may have called Extend")
            return replace(_returned(chunk, "its worker ended before it announced the attempt"), events=())
        case WorkerLost() if chunk.state == "sending" and chunk.attempt == trigger.attempt:
            return _unknown(chunk, "in_doubt", "the worker ended during the call")
        case EvidenceFound():
            return _proved(chunk, trigger.attempt, trigger.batch_id, "batch-submitted")
        case Adopted():
            return _proved(chunk, trigger.attempt, trigger.batch_id, "doubt-adopted")
        case WindowPassed() if chunk.state == "in_doubt" and chunk.attempt == trigger.attempt:
            if trigger.witness is not None:
                return Step(replace(chunk, state="held", reason=f"{trigger.witness} names the chunk, but no batch"))
            if chunk.cancelling is not None:
                return Step(replace(chunk, state="waiting"))
            if chunk.files_lost:
                return Step(replace(chunk, state="held", reason=FILES_LOST_IN_DOUBT))
            if chunk.resends >= trigger.resends_allowed:
                return Step(replace(chunk, state="held", reason="in doubt, after the maximum number of resends"))
            return _resend(chunk, "no evidence within the window")
        case Resent() if chunk.state in ("in_doubt", "held") and not (chunk.files_lost or chunk.cancelling):
            return _resend(chunk, trigger.why)
        case Discarded() if chunk.state in ("in_doubt", "held"):
            after = replace(chunk, state="refused", reason=f"discarded by {trigger.by}: {trigger.why}")
            return Step(after, (StepEvent("doubt-discarded", chunk.attempt),))
        case CancelRequested() if chunk.cancelling is None:
            return _cancel_requested(chunk, trigger.cancellation_id)
        case CutRequested() if chunk.state == "waiting" and chunk.cancelling is not None:
            if chunk.resends or chunk.batch_id:
                raise NotPossibleError("an earlier attempt may have been accepted")
            after = replace(chunk, state="cut", reason=CUT_IN_PART)
            return Step(after, (StepEvent("batch-cut", chunk.attempt),), parts=trigger.parts)
        case Cancelled() if chunk.state == "waiting" and chunk.cancelling is not None:
            return Step(chunk)
        case _:
            raise NotPossibleError(f"{type(trigger).__name__} in state {chunk.state}")


def refilled(chunk: ChunkState) -> ChunkState:
    """Return the state of a chunk after its files were restored.

    A chunk that was held only because of its lost files is no longer held. If it was in doubt before, it is in doubt
    again, so that evidence can still prevent a resend.
    """
    before: dict[str | None, StateName] = {FILES_LOST_UNSENT: "waiting", FILES_LOST_IN_DOUBT: "in_doubt"}
    if chunk.state == "held" and chunk.reason in before:
        reason = "the upload was repeated after the queue had lost its files"
        return replace(chunk, files_lost=False, state=before[chunk.reason], reason=reason)
    return replace(chunk, files_lost=False)


def _cancel_requested(chunk: ChunkState, cancellation_id: str) -> Step:
    flagged = replace(chunk, cancelling=cancellation_id)
    if chunk.state in ("waiting", "sending", "in_doubt"):
        return Step(flagged)
    if chunk.state == "held" and chunk.reason == FILES_LOST_UNSENT:
        # Extend did not accept the chunk, and only its lost files keep it from waiting. To be cancelled, it needs no
        # files.
        return Step(replace(flagged, state="waiting"))
    if chunk.state == "held":
        # A person decided that the chunk is not sent again. But Extend may have accepted an attempt, so Everyrun waits
        # for evidence again.
        return Step(replace(flagged, state="in_doubt"))
    raise NotPossibleError(f"CancelRequested in state {chunk.state}")


def _cancelled(done: Step) -> Step:
    """Return the step of a chunk that would wait, but whose cancellation was requested."""
    events = (*done.events, StepEvent("batch-cancelled", done.after.attempt))
    return replace(done, after=replace(done.after, state="cancelled"), events=events)


def _answered(chunk: ChunkState, answered: Answered) -> Step:
    outcome = answered.outcome
    current = answered.attempt == chunk.attempt
    is_certain = not isinstance(outcome, InDoubt | Unclear)
    if current and (chunk.state == "sending" or (chunk.state == "in_doubt" and is_certain)):
        return _ended(chunk, outcome)
    if isinstance(outcome, Accepted):
        return _proved(chunk, answered.attempt, outcome.batch_id, "batch-submitted")
    raise NotPossibleError(f"{type(outcome).__name__} of attempt {answered.attempt} in state {chunk.state}")


def _ended(chunk: ChunkState, outcome: Verdict | Expired | Unannounced) -> Step:
    match outcome:
        case Accepted():
            after = replace(chunk, state="submitted", batch_id=chunk.batch_id or outcome.batch_id, reason=None)
            return Step(after, (StepEvent("batch-submitted", chunk.attempt),))
        case Refused() if chunk.resends or chunk.batch_id:
            # Extend may have accepted an earlier attempt. So it could be wrong to refuse or to cut the inputs. They can
            # be cancelled: if a run of that attempt appears later, the inputs still get their runs.
            reason = f"refused ({outcome.status} {outcome.code}), but an earlier attempt may have been accepted"
            return _returned(chunk, reason, "waiting" if chunk.cancelling else "held")
        case Refused() if chunk.size > 1 and chunk.cancelling:
            # Parts would have to be cancelled at once, so the chunk is not cut.
            return Step(replace(chunk, state="waiting"))
        case Refused() if chunk.size > 1 and not chunk.whole:
            # Extend accepted none of the inputs, and it is not known which of them it refuses.
            reason = f"refused, and cut: {outcome.status} {outcome.code}: {outcome.message}"
            after = replace(chunk, state="cut", reason=reason)
            return Step(after, (StepEvent("batch-cut", chunk.attempt),), parts=cut_refused(chunk.size, outcome.named))
        case Refused():
            after = replace(chunk, state="refused", reason=f"{outcome.status} {outcome.code}: {outcome.message}")
            return Step(after, (StepEvent("batch-rejected", chunk.attempt),))
        case Returned():
            return _returned(chunk, outcome.reason)
        case Blocked():
            return replace(_returned(chunk, outcome.reason), pause=outcome.scope)
        case Expired():
            return _returned(chunk, "the deadline passed before the call began")
        case Unannounced():
            return replace(_returned(chunk, outcome.reason), events=())
        case Unclear():
            return _unknown(chunk, "in_doubt" if chunk.cancelling else "held", outcome.reason)
        case InDoubt():
            return _unknown(chunk, "in_doubt", outcome.reason)


def _returned(chunk: ChunkState, reason: str, state: StateName = "waiting") -> Step:
    """Return the step after an attempt that Extend did not accept.

    If an earlier attempt was accepted, the chunk becomes submitted, and is not sent again.
    """
    if chunk.files_lost and state == "waiting" and not chunk.cancelling:
        state, reason = "held", FILES_LOST_UNSENT
    return Step(_unless_submitted(chunk, state, reason), (StepEvent("batch-returned", chunk.attempt),))


def _unknown(chunk: ChunkState, state: StateName, reason: str) -> Step:
    """Return the step after an attempt whose outcome is unknown.

    If an earlier attempt was accepted, the chunk becomes submitted, and is not sent again.
    """
    return Step(_unless_submitted(chunk, state, reason), (StepEvent("batch-in-doubt", chunk.attempt),))


def _unless_submitted(chunk: ChunkState, state: StateName, reason: str) -> ChunkState:
    if chunk.batch_id:
        return replace(chunk, state="submitted", reason=None)
    return replace(chunk, state=state, reason=reason)


def _resend(chunk: ChunkState, reason: str) -> Step:
    after = replace(chunk, state="waiting", resends=chunk.resends + 1, reason=reason)
    return Step(after, (StepEvent("doubt-resent", chunk.attempt),))


def _proved(chunk: ChunkState, attempt: int, batch_id: str, kind: EventKind) -> Step:
    """Return the step when there is proof that Extend accepted the attempt.

    If another attempt was accepted too, the chunk has two batches.
    """
    if attempt > chunk.attempt:
        raise NotPossibleError(f"attempt {attempt} of a chunk with {chunk.attempt} attempts")
    published = (StepEvent(kind, attempt),)
    if chunk.state in ("submitted", "cut"):
        # A chunk that was cut stays cut: its inputs continue in its parts.
        return Step(chunk, published)
    if chunk.state == "sending" and attempt < chunk.attempt:
        # The call of the current attempt continues, but no other call follows.
        return Step(replace(chunk, batch_id=batch_id), published)
    return Step(replace(chunk, state="submitted", batch_id=chunk.batch_id or batch_id, reason=None), published)
