"""Dispatch keeps its promises in every world within the bounds. Without any one of its rules it breaks a promise.

The long search has more attempts and kills, and a restore during a second attempt: EVERYRUN_CHAOS=1 pytest tests/model
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from everyrun.submission.dispatch.classify import InDoubt, Refused, Returned
from everyrun.submission.dispatch.protocol import (
    Answered,
    Cancelled,
    CancelRequested,
    ChunkState,
    Claimed,
    EvidenceFound,
    NeverAnnounced,
    NotPossibleError,
    Step,
    StepEvent,
    Trigger,
    WindowPassed,
    WorkerLost,
    step,
)
from everyrun.submission.recovery.chunk_recovery import LoggedChunk, merge_logged
from tests.model.world import Bounds, Model

ATTEMPTS = Bounds(attempts=3, restores=0, decisions=0, kills=0)
DECISIONS = Bounds(restores=0, kills=0)
HONEST = Bounds(resends=2, restores=0, kills=0, honest=True)
RESTORED = Bounds(attempts=1, kills=0)
RESTORED_LONG = Bounds(decisions=0, kills=0)
LOST = RESTORED._replace(loses=True)
CUT = Bounds(restores=0, decisions=0, kills=0, size=2)
CUT_RESTORED = Bounds(attempts=1, resends=0, decisions=0, kills=0, size=2)
CUT_BY_A_LIE = Bounds(attempts=1, restores=0, decisions=0, kills=0, size=2, lies=True)
UNCLAIMED = Bounds(restores=0, decisions=0)
CANCELLED = Bounds(restores=0, decisions=0, kills=0, cancels=1)
CANCELLED_HONEST = HONEST._replace(cancels=1)
CANCELLED_RESTORED = RESTORED._replace(decisions=0, cancels=1)
CANCELLED_LOST = CANCELLED_RESTORED._replace(loses=True)
SEARCHES = [ATTEMPTS, UNCLAIMED, DECISIONS, HONEST, RESTORED, CUT, CUT_RESTORED, CUT_BY_A_LIE, LOST]
SEARCHES += [CANCELLED, CANCELLED_HONEST, CANCELLED_RESTORED, CANCELLED_LOST]
LONG = bool(os.environ.get("EVERYRUN_CHAOS"))
if LONG:
    SEARCHES += [ATTEMPTS._replace(kills=1), DECISIONS._replace(kills=1), RESTORED_LONG]
    SEARCHES += [CANCELLED._replace(kills=1), CANCELLED._replace(decisions=1), CANCELLED._replace(size=2)]
    SEARCHES += [CUT._replace(kills=1), CUT._replace(decisions=1), CUT_RESTORED._replace(kills=1)]
long = pytest.mark.skipif(not LONG, reason="EVERYRUN_CHAOS=1 searches this far")


@pytest.mark.parametrize("bounds", SEARCHES, ids=str)
def test_every_promise_holds_in_every_world(bounds: Bounds) -> None:
    worlds, broken = Model(step, merge_logged, bounds).search()
    assert broken is None, f"{broken.promise}:\n" + "\n".join(broken.path)
    assert worlds > 1000, "the search went nowhere"


Rule = Callable[[ChunkState, Trigger], Step | None]


def _without(rule: Rule) -> Callable[[ChunkState, Trigger], Step]:
    """Return ``step`` with one broken rule: if ``rule`` gives an answer, that answer is used."""

    def broken(chunk: ChunkState, trigger: Trigger) -> Step:
        instead = rule(chunk, trigger)
        return step(chunk, trigger) if instead is None else instead

    return broken


def _outcome(trigger: Trigger) -> Any:
    return trigger.outcome if isinstance(trigger, Answered) else None


def no_answer_waits_again(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(_outcome(trigger), InDoubt) and chunk.state == "sending":
        return Step(replace(chunk, state="waiting"), (StepEvent("batch-returned", chunk.attempt),))
    return None


def lost_waits_again(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, WorkerLost) and chunk.state == "sending":
        return Step(replace(chunk, state="waiting"), (StepEvent("batch-returned", chunk.attempt),))
    return None


def refused_after_a_doubt(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(_outcome(trigger), Refused) and chunk.state == "sending" and chunk.resends:
        return Step(replace(chunk, state="refused"), (StepEvent("batch-rejected", chunk.attempt),))
    return None


def evidence_in_the_call_is_forgotten(chunk: ChunkState, trigger: Trigger) -> Step | None:
    done = step(chunk, trigger) if isinstance(trigger, EvidenceFound) else None
    return replace(done, after=chunk) if done and chunk.state == "sending" else None


def sent_again_though_an_earlier_one_was_taken(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(_outcome(trigger), Returned) and chunk.state == "sending" and chunk.batch_id:
        return Step(replace(chunk, state="waiting"), (StepEvent("batch-returned", chunk.attempt),))
    return None


def evidence_for_the_discarded_is_passed_over(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, EvidenceFound) and chunk.state == "refused":
        raise NotPossibleError
    return None


def evidence_of_an_attempt_given_up_is_passed_over(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, EvidenceFound) and trigger.attempt < chunk.attempt:
        raise NotPossibleError
    return None


def evidence_is_kept_and_not_said(chunk: ChunkState, trigger: Trigger) -> Step | None:
    return replace(step(chunk, trigger), events=()) if isinstance(trigger, EvidenceFound) else None


def giving_up_is_not_said(chunk: ChunkState, trigger: Trigger) -> Step | None:
    return replace(step(chunk, trigger), events=()) if isinstance(trigger, WindowPassed) else None


def giving_up_is_not_counted(chunk: ChunkState, trigger: Trigger) -> Step | None:
    done = step(chunk, trigger) if isinstance(trigger, WindowPassed) else None
    return replace(done, after=replace(done.after, resends=chunk.resends)) if done else None


def a_late_answer_is_of_whichever_attempt(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, Answered) and chunk.state == "sending":
        return step(chunk, replace(trigger, attempt=chunk.attempt))
    return None


def lost_files_are_sent(chunk: ChunkState, trigger: Trigger) -> Step | None:
    return replace(done, after=replace(done.after, files_lost=chunk.files_lost)) if (
        done := _possible(replace(chunk, files_lost=False), trigger)
    ) else None  # fmt: skip


def _possible(chunk: ChunkState, trigger: Trigger) -> Step | None:
    try:
        return step(chunk, trigger)
    except NotPossibleError:
        return None


def cut_after_a_doubt(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(_outcome(trigger), Refused) and chunk.state == "sending" and chunk.resends:
        return step(replace(chunk, resends=0), trigger)
    return None


def a_cut_chunk_waits_again(chunk: ChunkState, trigger: Trigger) -> Step | None:
    done = step(chunk, trigger) if isinstance(_outcome(trigger), Refused) else None
    return replace(done, after=replace(done.after, state="waiting")) if done and done.parts else None


def a_cut_is_not_said(chunk: ChunkState, trigger: Trigger) -> Step | None:
    done = step(chunk, trigger) if isinstance(_outcome(trigger), Refused) else None
    return replace(done, events=()) if done and done.parts else None


def a_cut_without_parts(chunk: ChunkState, trigger: Trigger) -> Step | None:
    done = step(chunk, trigger) if isinstance(_outcome(trigger), Refused) else None
    return replace(done, parts=()) if done and done.parts else None


def evidence_for_a_chunk_that_was_cut_is_passed_over(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, EvidenceFound) and chunk.state == "cut":
        raise NotPossibleError
    return None


def it_waits_again_though_its_claim_is_there(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, WorkerLost) and chunk.state == "sending" and chunk.claimed and not chunk.announced:
        return step(replace(chunk, claimed=False), NeverAnnounced(chunk.attempt))
    return None


def a_cancelled_chunk_is_claimed(chunk: ChunkState, trigger: Trigger) -> Step | None:
    return step(replace(chunk, cancelling=None), trigger) if isinstance(trigger, Claimed) else None


def a_cancellation_is_not_said(chunk: ChunkState, trigger: Trigger) -> Step | None:
    return replace(step(chunk, trigger), events=()) if isinstance(trigger, Cancelled) else None


def evidence_for_the_cancelled_is_passed_over(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, EvidenceFound) and chunk.state == "cancelled":
        raise NotPossibleError
    return None


def a_doubt_is_cancelled_at_once(chunk: ChunkState, trigger: Trigger) -> Step | None:
    if isinstance(trigger, CancelRequested) and chunk.state == "in_doubt":
        return Step(replace(chunk, state="waiting", cancelling=trigger.cancellation_id))
    return None


@pytest.mark.parametrize(
    ("rule", "bounds"),
    [
        (a_cancelled_chunk_is_claimed, CANCELLED),
        (a_cancellation_is_not_said, CANCELLED),
        (evidence_for_the_cancelled_is_passed_over, CANCELLED),
        (a_doubt_is_cancelled_at_once, CANCELLED_HONEST),
        (lost_files_are_sent, LOST),
        (cut_after_a_doubt, CUT),
        (a_cut_chunk_waits_again, CUT),
        (a_cut_is_not_said, CUT),
        (a_cut_without_parts, CUT),
        (evidence_for_a_chunk_that_was_cut_is_passed_over, CUT_BY_A_LIE),
        (it_waits_again_though_its_claim_is_there, UNCLAIMED),
        (no_answer_waits_again, ATTEMPTS),
        (lost_waits_again, ATTEMPTS),
        (refused_after_a_doubt, ATTEMPTS),
        (evidence_in_the_call_is_forgotten, ATTEMPTS),
        (sent_again_though_an_earlier_one_was_taken, ATTEMPTS),
        (evidence_for_the_discarded_is_passed_over, DECISIONS),
        (evidence_of_an_attempt_given_up_is_passed_over, ATTEMPTS),
        (evidence_is_kept_and_not_said, ATTEMPTS),
        (giving_up_is_not_said, ATTEMPTS),
        (giving_up_is_not_counted, ATTEMPTS),
        (a_late_answer_is_of_whichever_attempt, ATTEMPTS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_without_any_rule_of_the_protocol_a_promise_breaks(rule: Rule, bounds: Bounds) -> None:
    _, broken = Model(_without(rule), merge_logged, bounds).search()
    assert broken is not None


@pytest.mark.parametrize(
    ("without", "bounds"),
    [("checks", UNCLAIMED), ("reads", UNCLAIMED), ("makes_parts", CUT_RESTORED), ("flags", CANCELLED_RESTORED)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_any_rule_of_the_service_a_promise_breaks(without: str, bounds: Bounds) -> None:
    _, broken = Model(step, merge_logged, bounds, **{without: False}).search()
    assert broken is not None


def the_log_is_not_heeded(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    return chunk


def what_was_given_up_is_forgotten(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    return replace(merge_logged(chunk, logged), resends=chunk.resends)


def what_was_taken_earlier_is_forgotten(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    return merge_logged(chunk, logged if logged.state == "submitted" else replace(logged, batch_id=None))


def what_is_under_way_waits_again(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    after = merge_logged(chunk, logged)
    return replace(after, state="waiting") if after.state == "sending" and chunk.state == "waiting" else after


def what_was_cut_is_forgotten(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    return merge_logged(chunk, replace(logged, parts=(), state="in_doubt") if logged.parts else logged)


def what_was_announced_is_forgotten(chunk: ChunkState, logged: LoggedChunk) -> ChunkState:
    return replace(merge_logged(chunk, logged), announced=False)


@pytest.mark.parametrize(
    ("rule", "bounds"),
    [
        (what_was_announced_is_forgotten, UNCLAIMED),
        (what_was_cut_is_forgotten, CUT_RESTORED._replace(attempts=2, resends=1)),
        (the_log_is_not_heeded, RESTORED_LONG),
        pytest.param(what_was_given_up_is_forgotten, RESTORED_LONG._replace(attempts=3), marks=long),
        pytest.param(what_was_taken_earlier_is_forgotten, RESTORED_LONG._replace(attempts=3), marks=long),
        (what_is_under_way_waits_again, RESTORED_LONG),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_without_any_rule_of_recovery_a_promise_breaks(
    rule: Callable[[ChunkState, LoggedChunk], ChunkState], bounds: Bounds
) -> None:
    _, broken = Model(step, rule, bounds).search()
    assert broken is not None
