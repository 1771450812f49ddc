"""What a list tells that is not known, and when a batch is polled or a workflow swept again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.reconciler.missing import Listed, made_since, missing, read_page, unknown_batches, unnamed
from everyrun.reconciler.schedule import Turn, after_failure, after_poll, first_turn, sweep_wait

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=1)


def listed(run_id: str = "r", status: str = "PROCESSED", batch_id: str | None = "b", **more) -> Listed:
    return Listed(run_id, status, batch_id, **more)


@pytest.mark.parametrize(
    "status", ["PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEEDS_REVIEW", "CANCELLING", "NEW"]
)
def test_a_run_at_rest_is_missing_unless_a_row_has_its_status(status) -> None:
    run = listed(status=status)
    assert missing([run], {}) == [run]
    assert missing([run], {"r": {("PROCESSING", None)}}) == [run]
    assert missing([run], {"r": {("PROCESSING", None), (status, None)}}) == []


@pytest.mark.parametrize("status", ["PENDING", "PROCESSING"])
def test_a_run_under_way_is_not_asked_for(status) -> None:
    assert missing([listed(status=status)], {"r": {("FAILED", NOON)}}) == []


def test_a_run_that_came_to_the_same_status_again_is_missing() -> None:
    run = listed(status="FAILED", own=LATER)
    assert missing([run], {"r": {("FAILED", NOON)}}) == [run]
    assert missing([run], {"r": {("FAILED", LATER)}}) == []
    assert missing([listed(status="FAILED", own=NOON)], {"r": {("FAILED", LATER)}}) == []


def test_a_run_that_changed_just_now_is_left_to_its_webhook() -> None:
    run = listed(updated_at=LATER)
    assert missing([run], {}, NOON) == []
    assert missing([run], {}, LATER) == [run]
    assert missing([listed()], {}, NOON) == [listed()]


def test_a_run_listed_twice_is_asked_for_once() -> None:
    assert missing([listed(), listed()], {}) == [listed()]


def test_the_runs_of_each_unknown_batch() -> None:
    runs = [listed("1", batch_id="a"), listed("2", batch_id="b"), listed("3", batch_id="b"), listed("4", batch_id=None)]
    assert unknown_batches(runs, ["a"]) == {"b": runs[1:3]}


def test_a_batch_of_which_a_run_was_created_before_a_call_was_not_made_by_it() -> None:
    early, late, unknown = listed(created_at=NOON), listed(created_at=LATER), listed()
    assert made_since([late, unknown], LATER)
    assert not made_since([late, early, unknown], LATER)
    assert made_since([early], None)


def test_runs_under_way_are_named_only_where_an_input_must_be_without_a_run() -> None:
    runs = [listed("1"), listed("2", "PROCESSING"), listed("3", "PENDING")]
    assert unnamed(runs, {}, 3) == []
    assert unnamed(runs, {"2": {("PROCESSING", None)}}, 4) == [runs[2]]


def test_a_page_is_read_and_what_is_no_run_is_left_out() -> None:
    times = {"createdAt": "2026-01-01T12:00:00.000Z", "updatedAt": "2026-01-01T12:00:01.000Z"}
    run = {
        "id": "r",
        "status": "FAILED",
        "batchId": "b",
        "endTime": "2026-01-01T12:00:00Z",
        "reviewedAt": None,
        **times,
    }
    (read,) = read_page([run, None, 3, {}, {"id": "x"}, {"id": "", "status": "FAILED"}, {"id": 1, "status": "FAILED"}])
    assert read == Listed("r", "FAILED", "b", NOON, LATER, NOON)
    assert read_page([{"id": "r", "status": "S", "batchId": 3, "createdAt": "?", "updatedAt": None, "endTime": 5}]) == [
        Listed("r", "S")
    ]


def test_polls_slow_down_while_webhooks_bring_what_there_is_and_no_further_than_eight_times() -> None:
    turn, waits = Turn(0.0), []
    for settled in (10, 20, 30, 40, 40):
        turn = after_poll(turn, now=0.0, age=0, every=60, settled=settled, found=0, jitter=0)
        waits.append(turn.due)
    assert waits == [120, 240, 480, 480, 60]
    slowed = Turn(0.0, 4.0, 10)
    assert after_poll(slowed, now=0, age=0, every=60, settled=20, found=1, jitter=0).due == 60
    assert after_failure(slowed, now=0, every=60, jitter=0).due == 60


TURNS = st.builds(Turn, st.just(0.0), st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.integers(0, 1000))


@given(
    turn=TURNS,
    age=st.floats(0, 30 * 86_400),
    settled=st.integers(0, 1000),
    found=st.integers(0, 3),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_the_wait_has_bounds_and_finding_something_never_makes_it_longer(turn, age, settled, found, jitter) -> None:
    def wait(found: int) -> float:
        return after_poll(turn, now=0.0, age=age, every=10, settled=settled, found=found, jitter=jitter).due

    assert 10 <= wait(found) <= max(80, min(age / 20, 3600)) * 1.2
    assert wait(1) <= wait(0)


@given(jitter=st.floats(0, 1, exclude_max=True))
def test_a_batch_that_waits_a_month_for_a_person_costs_less_than_a_thousand_lists(jitter) -> None:
    turn, polls = Turn(60.0), 0
    while turn.due < 30 * 86_400:
        turn = after_poll(turn, now=turn.due, age=turn.due, every=60, settled=999, found=0, jitter=jitter)
        polls += 1
    assert 500 < polls < 1000


def test_a_batch_that_another_process_polled_is_polled_when_it_would_have_been() -> None:
    assert first_turn(now=100, every=60, polled_ago=None).due == 100
    assert first_turn(now=100, every=60, polled_ago=20).due == 140
    assert first_turn(now=100, every=60, polled_ago=1000).due == 100


@given(took=st.floats(0, 1e4), in_doubt=st.booleans())
def test_sweeps_take_a_sixth_of_the_time_at_most_and_a_half_while_inputs_wait_for_them(took, in_doubt) -> None:
    wait = sweep_wait(in_doubt=in_doubt, every=300, in_doubt_every=15, took=took)
    assert wait >= (15 if in_doubt else 300)
    assert took <= wait / (2 if in_doubt else 6) + 1e-6
    # A chunk in doubt waits for two sweeps: a slow one must not keep it for many times its own length.
    assert not in_doubt or wait <= max(15, took * 2)
