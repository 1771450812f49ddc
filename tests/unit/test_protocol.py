"""Single steps of the protocol. The model's search (tests/model) checks only that no promise breaks."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from everyrun.log import events
from everyrun.submission.dispatch.classify import Accepted, Blocked, InDoubt, Refused, Returned, Unclear
from everyrun.submission.dispatch.protocol import (
    FILES_LOST_UNSENT,
    Answered,
    Cancelled,
    CancelRequested,
    ChunkState,
    Claimed,
    ClaimRevoked,
    Discarded,
    EvidenceFound,
    Expired,
    NeverAnnounced,
    NotPossibleError,
    Resent,
    StepEvent,
    Trigger,
    WindowPassed,
    WorkerLost,
    step,
)
from everyrun.submission.recovery.chunk_recovery import merge_logged, read_chunks

REFUSED = Refused(400, "INVALID_REQUEST", "no")


def claimed(size: int = 1, **more: Any) -> ChunkState:
    return replace(step(ChunkState("waiting", size=size), Claimed()).after, **more)


def test_a_refused_chunk_of_several_inputs_is_cut_and_of_one_is_refused() -> None:
    done = step(claimed(5), Answered(1, REFUSED))
    assert (done.after.state, done.events, done.parts) == ("cut", (StepEvent("batch-cut", 1),), ((0, 2), (3, 4)))
    done = step(claimed(5), Answered(1, replace(REFUSED, named=(1,))))
    assert done.parts == ((0, 0), (1, 1), (2, 4))
    done = step(claimed(1), Answered(1, replace(REFUSED, named=(0,))))
    assert (done.after.state, done.events, done.parts) == ("refused", (StepEvent("batch-rejected", 1),), ())
    assert done.pause is None


def test_a_chunk_whose_caller_expects_all_or_nothing_is_refused_as_a_whole() -> None:
    done = step(claimed(5, whole=True), Answered(1, replace(REFUSED, named=(1,))))
    assert (done.after.state, done.events, done.parts) == ("refused", (StepEvent("batch-rejected", 1),), ())


@pytest.mark.parametrize("size", [1, 5])
def test_a_chunk_with_an_earlier_doubt_is_neither_cut_nor_refused(size: int) -> None:
    done = step(claimed(size, resends=1), Answered(1, REFUSED))
    assert (done.after.state, done.events, done.parts) == ("held", (StepEvent("batch-returned", 1),), ())
    done = step(claimed(size, batch_id="batch_1"), Answered(1, REFUSED))
    assert (done.after.state, done.events, done.parts) == ("submitted", (StepEvent("batch-returned", 1),), ())


def test_a_late_refusal_of_an_attempt_in_doubt_cuts_the_chunk() -> None:
    in_doubt = step(claimed(4), WorkerLost(1)).after
    assert step(in_doubt, Answered(1, REFUSED)).after.state == "cut"


CUT = step(claimed(4), Answered(1, REFUSED)).after


def test_a_cut_chunk_stays_cut_but_publishes_evidence() -> None:
    done = step(CUT, EvidenceFound(1, "batch_1", "run_1"))
    assert (done.after, done.events) == (CUT, (StepEvent("batch-submitted", 1),))
    assert step(CUT, Answered(1, Accepted("batch_1"))).events == (StepEvent("batch-submitted", 1),)
    never: list[Trigger] = [Claimed(), WorkerLost(1), ClaimRevoked(1), NeverAnnounced(1), Resent("ann", "go on")]
    never += [Discarded("ann", "no"), WindowPassed(1, 3), Answered(1, InDoubt("x")), Answered(1, Returned("x"))]
    for trigger in never:
        with pytest.raises(NotPossibleError):
            step(CUT, trigger)


def test_an_unannounced_attempt_waits_again_after_its_claim_was_revoked() -> None:
    chunk = claimed(3)
    assert (chunk.claimed, chunk.announced) == (True, False)
    with pytest.raises(NotPossibleError):
        step(chunk, NeverAnnounced(1))
    taken_away = step(chunk, ClaimRevoked(1))
    assert (taken_away.after, taken_away.events) == (replace(chunk, claimed=False), ())
    done = step(taken_away.after, NeverAnnounced(1))
    assert (done.after.state, done.after.attempt, done.after.resends, done.events) == ("waiting", 1, 0, ())
    with pytest.raises(NotPossibleError):
        step(replace(taken_away.after, announced=True), NeverAnnounced(1))
    for trigger in (ClaimRevoked(2), NeverAnnounced(2)):
        with pytest.raises(NotPossibleError):
            step(taken_away.after, trigger)
    # The worker was only slow, and now reports its answer.
    assert step(taken_away.after, Answered(1, Expired())).after.state == "waiting"


def test_a_chunk_with_an_accepted_attempt_is_not_sent_again() -> None:
    chunk = claimed(3, claimed=False, batch_id="batch_1")
    assert step(chunk, NeverAnnounced(1)).after.state == "submitted"


def logged(*found: Any) -> Any:
    return read_chunks(found)["sub_x.c00001"]


PARTS = [events.Part("sub_x.c00001-1", 1, 2), events.Part("sub_x.c00001-2", 3, 4)]
AT = {"submission_id": "sub_x", "chunk": "sub_x.c00001"}
CUT_EVENT = events.BatchCut(**AT, attempt=1, status=400, code="X", message="no", input_ids=[], parts=PARTS)


def test_a_restored_queue_gets_the_same_parts_from_the_log() -> None:
    found = logged(CUT_EVENT)
    assert (list(found.parts), found.submission_id) == (PARTS, "sub_x")
    for chunk in (ChunkState("waiting", size=4), claimed(4), step(claimed(4), WorkerLost(1)).after):
        after = merge_logged(chunk, found)
        assert (after.state, after.attempt, after.claimed, after.announced) == ("cut", 1, False, False)
    assert merge_logged(CUT, found) == CUT


def test_a_cut_chunk_stays_cut_whatever_else_the_log_has() -> None:
    proved: Any = msgspec_event(events.BatchSubmitted, batch_id="batch_1")
    for order in ((CUT_EVENT, proved), (proved, CUT_EVENT)):
        assert merge_logged(claimed(4), logged(*order)).state == "cut"


def msgspec_event(kind: type, **given: Any) -> Any:
    names = dict.fromkeys(kind.__struct_fields__)  # type: ignore[attr-defined]
    return kind(**{**names, **AT, "attempt": 1, **given})


def test_reading_the_announcement_of_an_attempt_does_not_change_its_outcome() -> None:
    requested = logged(msgspec_event(events.BatchRequested))
    after = merge_logged(claimed(4, reason="as it was"), requested)
    assert after == claimed(4, reason="as it was", announced=True)
    again = replace(claimed(4), attempt=2)
    assert not merge_logged(again, requested).announced, "an earlier attempt's event announces no later one"
    forgotten = merge_logged(ChunkState("waiting", size=4), requested)
    assert (forgotten.state, forgotten.claimed, forgotten.announced) == ("sending", False, True)


CANCEL = CancelRequested("can_1")
CANCELLED_EVENT = StepEvent("batch-cancelled", 1)


def cancelling(**more: Any) -> ChunkState:
    """Return a chunk whose call is in progress while its cancellation is requested."""
    return step(claimed(**more), CANCEL).after


def test_a_chunk_that_was_never_sent_is_cancelled_with_attempt_0_and_cannot_be_claimed_before() -> None:
    flagged = step(ChunkState("waiting"), CANCEL)
    assert (flagged.after.state, flagged.after.cancelling, flagged.events) == ("waiting", "can_1", ())
    with pytest.raises(NotPossibleError):
        step(flagged.after, Claimed())
    done = step(flagged.after, Cancelled())
    assert (done.after.state, done.events) == ("cancelled", (StepEvent("batch-cancelled", 0),))
    with pytest.raises(NotPossibleError):
        step(ChunkState("waiting"), Cancelled())


@pytest.mark.parametrize(
    ("outcome", "kinds"),
    [
        (Returned("429"), ["batch-returned", "batch-cancelled"]),
        (Blocked("402", "workflow"), ["batch-returned", "batch-cancelled"]),
        (Expired(), ["batch-returned", "batch-cancelled"]),
        (REFUSED, ["batch-cancelled"]),
    ],
)
def test_a_call_that_extend_did_not_accept_ends_in_cancelled(outcome: Any, kinds: list[str]) -> None:
    done = step(cancelling(size=2), Answered(1, outcome))
    assert (done.after.state, done.after.reason) == ("cancelled", getattr(outcome, "reason", done.after.reason))
    assert [event.kind for event in done.events] == kinds
    assert not done.parts


def test_a_call_that_extend_accepted_ends_in_submitted_although_it_is_cancelled() -> None:
    done = step(cancelling(), Answered(1, Accepted("batch_1")))
    assert (done.after.state, done.after.cancelling) == ("submitted", "can_1")


@pytest.mark.parametrize("outcome", [InDoubt("no answer"), Unclear("no batchId")])
def test_a_call_in_doubt_is_cancelled_after_the_window_and_evidence_before_and_after_it_counts(outcome: Any) -> None:
    in_doubt = step(cancelling(), Answered(1, outcome)).after
    assert in_doubt.state == "in_doubt"
    with pytest.raises(NotPossibleError):
        step(in_doubt, Resent("ann", "go on"))
    passed = step(in_doubt, WindowPassed(1, 1))
    assert (passed.after.state, passed.events) == ("cancelled", (CANCELLED_EVENT,))
    for chunk in (in_doubt, passed.after):
        done = step(chunk, EvidenceFound(1, "batch_1", "run_1"))
        assert (done.after.state, done.events) == ("submitted", (StepEvent("batch-submitted", 1),))


def test_a_run_that_names_the_chunk_keeps_a_cancelled_doubt_open_for_a_person() -> None:
    in_doubt = step(cancelling(), WorkerLost(1)).after
    held = step(in_doubt, WindowPassed(1, 1, witness="run_1")).after
    assert held.state == "held"
    assert step(held, Discarded("ann", "enough")).after.state == "refused"


@pytest.mark.parametrize(
    ("reason", "state"), [("in doubt, after the maximum number of resends", "in_doubt"), (FILES_LOST_UNSENT, "waiting")]
)
def test_a_held_chunk_waits_for_evidence_again_unless_extend_did_not_accept_it(reason: str, state: str) -> None:
    held = ChunkState("held", 1, reason=reason, files_lost=True)
    assert step(held, CANCEL).after.state == state


@pytest.mark.parametrize("state", ["submitted", "refused", "cut", "cancelled"])
def test_a_chunk_with_an_outcome_cannot_be_cancelled(state: Any) -> None:
    with pytest.raises(NotPossibleError):
        step(ChunkState(state, 1), CANCEL)


@pytest.mark.parametrize("state", ["waiting", "sending", "in_doubt", "held"])
def test_a_restored_queue_learns_from_the_log_that_a_chunk_was_cancelled(state: Any) -> None:
    event = msgspec_event(events.BatchCancelled)
    known = logged(event)
    assert merge_logged(ChunkState(state, 1), known).state == "cancelled"
    assert merge_logged(ChunkState("waiting", 0), known).state == "cancelled"
    submitted = logged(event, msgspec_event(events.BatchSubmitted, batch_id="batch_1"))
    assert merge_logged(ChunkState(state, 1), submitted).state == "submitted"
