"""Dispatch keeps its promises in every world within the bounds; without any one of its rules it breaks one.

The long form has more attempts and kills, and a restore under a second attempt: EVERYRUN_CHAOS=1 pytest tests/model
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from everyrun.submission.dispatch.classify import InDoubt, Rejected, Returned
from everyrun.submission.dispatch.protocol import (
    Answered,
    ChunkState,
    Evidence,
    Happening,
    Lost,
    NeverAnnounced,
    NotPossibleError,
    Say,
    Step,
    WindowPassed,
    step,
)
from everyrun.submission.recovery.chunk_recovery import Logged, take_over
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
SEARCHES = [ATTEMPTS, UNCLAIMED, DECISIONS, HONEST, RESTORED, CUT, CUT_RESTORED, CUT_BY_A_LIE, LOST]
LONG = bool(os.environ.get("EVERYRUN_CHAOS"))
if LONG:
    SEARCHES += [ATTEMPTS._replace(kills=1), DECISIONS._replace(kills=1), RESTORED_LONG]
    SEARCHES += [CUT._replace(kills=1), CUT._replace(decisions=1), CUT_RESTORED._replace(kills=1)]
long = pytest.mark.skipif(not LONG, reason="EVERYRUN_CHAOS=1 searches this far")


@pytest.mark.parametrize("bounds", SEARCHES, ids=str)
def test_every_promise_holds_in_every_world(bounds: Bounds) -> None:
    worlds, broken = Model(step, take_over, bounds).search()
    assert broken is None, f"{broken.promise}:\n" + "\n".join(broken.path)
    assert worlds > 1000, "the search went nowhere"


Rule = Callable[[ChunkState, Happening], Step | None]


def _without(rule: Rule) -> Callable[[ChunkState, Happening], Step]:
    """``step`` with one rule of it broken: where ``rule`` answers, so does this."""

    def broken(chunk: ChunkState, happening: Happening) -> Step:
        instead = rule(chunk, happening)
        return step(chunk, happening) if instead is None else instead

    return broken


def _outcome(happening: Happening) -> Any:
    return happening.outcome if isinstance(happening, Answered) else None


def no_answer_waits_again(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(_outcome(happening), InDoubt) and chunk.state == "sending":
        return Step(replace(chunk, state="waiting"), (Say("batch-returned", chunk.attempt),))
    return None


def lost_waits_again(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(happening, Lost) and chunk.state == "sending":
        return Step(replace(chunk, state="waiting"), (Say("batch-returned", chunk.attempt),))
    return None


def refused_after_a_doubt(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(_outcome(happening), Rejected) and chunk.state == "sending" and chunk.resends:
        return Step(replace(chunk, state="refused"), (Say("batch-rejected", chunk.attempt),))
    return None


def evidence_in_the_call_is_forgotten(chunk: ChunkState, happening: Happening) -> Step | None:
    done = step(chunk, happening) if isinstance(happening, Evidence) else None
    return replace(done, after=chunk) if done and chunk.state == "sending" else None


def sent_again_though_an_earlier_one_was_taken(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(_outcome(happening), Returned) and chunk.state == "sending" and chunk.batch_id:
        return Step(replace(chunk, state="waiting"), (Say("batch-returned", chunk.attempt),))
    return None


def evidence_for_the_discarded_is_passed_over(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(happening, Evidence) and chunk.state == "refused":
        raise NotPossibleError
    return None


def evidence_of_an_attempt_given_up_is_passed_over(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(happening, Evidence) and happening.attempt < chunk.attempt:
        raise NotPossibleError
    return None


def evidence_is_kept_and_not_said(chunk: ChunkState, happening: Happening) -> Step | None:
    return replace(step(chunk, happening), say=()) if isinstance(happening, Evidence) else None


def giving_up_is_not_said(chunk: ChunkState, happening: Happening) -> Step | None:
    return replace(step(chunk, happening), say=()) if isinstance(happening, WindowPassed) else None


def giving_up_is_not_counted(chunk: ChunkState, happening: Happening) -> Step | None:
    done = step(chunk, happening) if isinstance(happening, WindowPassed) else None
    return replace(done, after=replace(done.after, resends=chunk.resends)) if done else None


def a_late_answer_is_of_whichever_attempt(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(happening, Answered) and chunk.state == "sending":
        return step(chunk, replace(happening, attempt=chunk.attempt))
    return None


def lost_files_are_sent(chunk: ChunkState, happening: Happening) -> Step | None:
    return replace(done, after=replace(done.after, files_lost=chunk.files_lost)) if (
        done := _possible(replace(chunk, files_lost=False), happening)
    ) else None  # fmt: skip


def _possible(chunk: ChunkState, happening: Happening) -> Step | None:
    try:
        return step(chunk, happening)
    except NotPossibleError:
        return None


def cut_after_a_doubt(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(_outcome(happening), Rejected) and chunk.state == "sending" and chunk.resends:
        return step(replace(chunk, resends=0), happening)
    return None


def a_cut_chunk_waits_again(chunk: ChunkState, happening: Happening) -> Step | None:
    done = step(chunk, happening) if isinstance(_outcome(happening), Rejected) else None
    return replace(done, after=replace(done.after, state="waiting")) if done and done.parts else None


def a_cut_is_not_said(chunk: ChunkState, happening: Happening) -> Step | None:
    done = step(chunk, happening) if isinstance(_outcome(happening), Rejected) else None
    return replace(done, say=()) if done and done.parts else None


def a_cut_without_parts(chunk: ChunkState, happening: Happening) -> Step | None:
    done = step(chunk, happening) if isinstance(_outcome(happening), Rejected) else None
    return replace(done, parts=()) if done and done.parts else None


def evidence_for_a_chunk_that_was_cut_is_passed_over(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(happening, Evidence) and chunk.state == "cut":
        raise NotPossibleError
    return None


def it_waits_again_though_its_claim_is_there(chunk: ChunkState, happening: Happening) -> Step | None:
    if isinstance(happening, Lost) and chunk.state == "sending" and chunk.claimed and not chunk.announced:
        return step(replace(chunk, claimed=False), NeverAnnounced(chunk.attempt))
    return None


@pytest.mark.parametrize(
    ("rule", "bounds"),
    [
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
def test_without_any_one_rule_a_promise_breaks(rule: Rule, bounds: Bounds) -> None:
    _, broken = Model(_without(rule), take_over, bounds).search()
    assert broken is not None


@pytest.mark.parametrize(
    ("without", "bounds"),
    [("checks", UNCLAIMED), ("reads", UNCLAIMED), ("makes_parts", CUT_RESTORED)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_any_one_rule_of_the_service_a_promise_breaks(without: str, bounds: Bounds) -> None:
    _, broken = Model(step, take_over, bounds, **{without: False}).search()
    assert broken is not None


def the_log_is_not_heeded(chunk: ChunkState, logged: Logged) -> ChunkState:
    return chunk


def what_was_given_up_is_forgotten(chunk: ChunkState, logged: Logged) -> ChunkState:
    return replace(take_over(chunk, logged), resends=chunk.resends)


def what_was_taken_earlier_is_forgotten(chunk: ChunkState, logged: Logged) -> ChunkState:
    return take_over(chunk, logged if logged.state == "sent" else replace(logged, batch_id=None))


def what_is_under_way_waits_again(chunk: ChunkState, logged: Logged) -> ChunkState:
    after = take_over(chunk, logged)
    return replace(after, state="waiting") if after.state == "sending" and chunk.state == "waiting" else after


def what_was_cut_is_forgotten(chunk: ChunkState, logged: Logged) -> ChunkState:
    return take_over(chunk, replace(logged, parts=(), state="in_doubt") if logged.parts else logged)


def what_was_announced_is_forgotten(chunk: ChunkState, logged: Logged) -> ChunkState:
    return replace(take_over(chunk, logged), announced=False)


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
def test_without_any_one_rule_of_a_restore_a_promise_breaks(
    rule: Callable[[ChunkState, Logged], ChunkState], bounds: Bounds
) -> None:
    _, broken = Model(step, rule, bounds).search()
    assert broken is not None
