"""The estimate of the time left follows from the results of the last minutes, or it says what it assumes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.query.estimate import RATE_OVER, Estimate, Sample, credits_of, estimate, rate, stalls_of
from everyrun.waiting import Waiting

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
COUNTS = st.lists(st.tuples(st.floats(0.1, 3600), st.integers(0, 10**6)), max_size=40)


def samples(pairs: list[tuple[float, int]]) -> list[Sample]:
    return [Sample(NOW - timedelta(seconds=seconds), settled) for seconds, settled in pairs]


def estimated(found: list[Sample], settled: int, remaining: int, **more: Any) -> Estimate:
    given = {"ahead": 0, "plan_per_minute": 80.0, "stalls": [], "credits": credits_of(0, 0, 1), **more}
    return estimate(NOW, found, settled=settled, remaining=remaining, **given)


@given(COUNTS, st.integers(0, 10**6), st.randoms())
def test_a_rate_is_never_negative_and_does_not_depend_on_the_order(
    pairs: list[tuple[float, int]], settled: int, chance: Any
) -> None:
    found = rate(samples(pairs), NOW, settled)
    assert found is None or found >= 0
    mixed = samples(list({seconds: (seconds, number) for seconds, number in pairs}.values()))
    expected = rate(mixed, NOW, settled)
    chance.shuffle(mixed)
    assert rate(mixed, NOW, settled) == expected


@given(st.floats(0.5, 10_000), st.lists(st.floats(0.1, 3600), min_size=1, max_size=30, unique=True))
def test_steady_results_give_their_rate(per_minute: float, ages: list[float]) -> None:
    """Whatever the times of the samples are, and even if the last sample is older than the measured time."""
    total = 1e9
    steady = [Sample(NOW - timedelta(seconds=age), total - per_minute * age / 60) for age in ages]  # type: ignore[arg-type]
    found = rate(steady, NOW, total)  # type: ignore[arg-type]
    if max(ages) < 2:
        assert found is None
    else:
        assert found == pytest.approx(per_minute, rel=0.01)


@given(COUNTS, st.integers(0, 10**6))
def test_only_the_last_minutes_count(pairs: list[tuple[float, int]], settled: int) -> None:
    old = [Sample(NOW - RATE_OVER - timedelta(hours=1), 0), Sample(NOW - RATE_OVER, 500)]
    within = [(seconds, number) for seconds, number in pairs if seconds < RATE_OVER.total_seconds()]
    assert rate(old + samples(within), NOW, settled) == rate([old[1], *samples(within)], NOW, settled)


def test_inputs_that_are_open_again_are_not_negative_progress() -> None:
    """300 settle, 200 of them are retried, and 200 settle again: that is 500 in five minutes."""
    assert rate(samples([(300, 0), (200, 300), (199, 100)]), NOW, 300) == 100


@given(COUNTS, st.integers(0, 10**6), st.integers(-5, 10**7), st.integers(0, 10**6))
def test_an_estimate_is_consistent(pairs: list[tuple[float, int]], settled: int, remaining: int, ahead: int) -> None:
    found = estimated(samples(pairs), settled, remaining, ahead=ahead)
    assert (found.seconds_left is None) == (found.basis is None)
    if remaining <= 0:
        assert found.seconds_left is None
    if found.basis == "rate":
        assert found.settled_per_minute is not None
        more = estimated(samples(pairs), settled, remaining + 1000, ahead=ahead)
        assert (more.seconds_left or 0) >= (found.seconds_left or 0) > 0
    if found.basis == "plan":
        assert settled == 0
        assert found.seconds_left == pytest.approx((remaining + ahead) / 80 * 60, rel=0.01, abs=0.1)


def test_without_results_in_the_last_minutes_nothing_is_promised() -> None:
    found = estimated(samples([(1000, 10), (400, 50), (200, 50)]), 50, 100)
    assert (found.seconds_left, found.done_at, found.basis, found.settled_per_minute) == (None, None, None, 0)


def test_a_measured_rate_wins_over_the_plan() -> None:
    found = estimated(samples([(60, 0)]), 120, 240)
    assert (found.basis, found.settled_per_minute, found.seconds_left) == ("rate", 120, 120)
    assert found.done_at == "2026-11-27T12:02:00+00:00"


def test_credits_are_projected_from_settled_batches() -> None:
    assert credits_of(50, 100, 1000).projected == 500
    assert credits_of(0, 0, 1000).projected is None


def test_each_reason_for_a_stall_is_said() -> None:
    def waiting(waits_for: str, inputs: int) -> Waiting:
        return Waiting("WAITING", waits_for, inputs, f"the reason {waits_for}", None, None)

    said = stalls_of(
        [waiting("workflow_paused", 2000), waiting("sending_window", 5), waiting("queued", 9)],
        {"needs_review": 12, "ambiguous_metadata": 1},
        39.6,
    )
    assert said == [
        "the reason workflow_paused: 2,000",
        "the reason sending_window: 5",
        "waiting for review: 12",
        "waiting for a decision about ambiguous runs: 1",
        "Extend asked us to wait 40 s",
    ]
    assert stalls_of([waiting("calling", 9)], {}, 0.4) == []
