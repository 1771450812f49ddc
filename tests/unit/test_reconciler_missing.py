"""What a list tells that is not known, and when a batch is polled again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.reconciler.missing import Listed, missing, read_page, unknown_batches
from everyrun.reconciler.schedule import Turn, after_failure, after_poll


def listed(run_id: str = "r", status: str = "PROCESSED", batch_id: str | None = "b", updated: str = "u") -> Listed:
    return Listed(run_id, status, batch_id, None, updated)


@pytest.mark.parametrize(
    "status", ["PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEEDS_REVIEW", "CANCELLING", "NEW"]
)
def test_a_run_at_rest_is_missing_unless_a_row_has_its_status(status) -> None:
    run = listed(status=status)
    assert missing([run], {}, {}) == [run]
    assert missing([run], {"r": {"PROCESSING"}}, {}) == [run]
    assert missing([run], {"r": {"PROCESSING", status}}, {}) == []


@pytest.mark.parametrize("status", ["PENDING", "PROCESSING"])
def test_a_run_under_way_is_not_asked_for(status) -> None:
    assert missing([listed(status=status)], {"r": {"FAILED"}}, {}) == []


def test_a_run_that_was_asked_for_is_asked_for_again_only_when_it_changed() -> None:
    run = listed()
    assert missing([run], {}, {"r": ("PROCESSED", "u")}) == []
    assert missing([run], {}, {"r": ("PROCESSED", "earlier")}) == [run]
    assert missing([run], {}, {"r": ("FAILED", "u")}) == [run]


def test_a_run_listed_twice_is_asked_for_once() -> None:
    assert missing([listed(), listed()], {}, {}) == [listed()]


def test_one_run_of_each_unknown_batch() -> None:
    runs = [listed("1", batch_id="a"), listed("2", batch_id="b"), listed("3", batch_id="b"), listed("4", batch_id=None)]
    assert unknown_batches(runs, ["a"]) == {"b": "2"}


def test_a_page_is_read_and_what_is_no_run_is_left_out() -> None:
    run = {"id": "r", "status": "FAILED", "batchId": "b", "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "u"}
    (read,) = read_page([run, None, 3, {}, {"id": "x"}, {"id": "", "status": "FAILED"}, {"id": 1, "status": "FAILED"}])
    assert read[:3] == ("r", "FAILED", "b")
    assert read.created_at is not None
    assert read.created_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert read_page([{"id": "r", "status": "S", "batchId": 3, "createdAt": "?", "updatedAt": None}]) == [
        Listed("r", "S", None, None, "")
    ]


def test_polls_slow_down_while_webhooks_bring_what_there_is_and_no_further_than_four_times() -> None:
    turn, waits = Turn(0.0), []
    for settled in (10, 20, 30, 40, 40):
        turn = after_poll(turn, now=0.0, every=60, settled=settled, found=0, jitter=0)
        waits.append(turn.due)
    assert waits == [120, 240, 240, 240, 60]
    slowed = Turn(0.0, 4.0, 10)
    assert after_poll(slowed, now=0, every=60, settled=20, found=1, jitter=0).due == 60
    assert after_failure(slowed, now=0, every=60, jitter=0).due == 60


@given(
    turn=st.builds(Turn, st.just(0.0), st.sampled_from([1.0, 2.0, 4.0]), st.integers(0, 1000)),
    settled=st.integers(0, 1000),
    found=st.integers(0, 3),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_the_wait_is_never_shorter_than_the_setting_nor_longer_than_five_times(turn, settled, found, jitter) -> None:
    due = after_poll(turn, now=100.0, every=10, settled=settled, found=found, jitter=jitter).due
    assert 110 <= due <= 150
