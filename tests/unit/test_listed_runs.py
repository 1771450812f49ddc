"""Runs of a list are fetched if the tables do not have their state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from everyrun.reconciler.listed_runs import (
    ListedRun,
    may_be_made_since,
    read_page,
    runs_of_unknown_batches,
    runs_to_fetch,
    unidentified_runs,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=1)


def listed(run_id: str = "r", status: str = "PROCESSED", batch_id: str | None = "b", **more) -> ListedRun:
    return ListedRun(run_id, status, batch_id, **more)


@pytest.mark.parametrize(
    "status", ["PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEEDS_REVIEW", "CANCELLING", "NEW"]
)
def test_run_at_rest_is_fetched_unless_a_row_has_its_status(status) -> None:
    run = listed(status=status)
    assert runs_to_fetch([run], {}) == [run]
    assert runs_to_fetch([run], {"r": {("PROCESSING", None)}}) == [run]
    assert runs_to_fetch([run], {"r": {("PROCESSING", None), (status, None)}}) == []


@pytest.mark.parametrize("status", ["PENDING", "PROCESSING"])
def test_run_in_progress_is_not_fetched(status) -> None:
    assert runs_to_fetch([listed(status=status)], {"r": {("FAILED", NOON)}}) == []


def test_run_that_reached_the_same_status_again_is_fetched() -> None:
    run = listed(status="FAILED", own=LATER)
    assert runs_to_fetch([run], {"r": {("FAILED", NOON)}}) == [run]
    assert runs_to_fetch([run], {"r": {("FAILED", LATER)}}) == []
    assert runs_to_fetch([listed(status="FAILED", own=NOON)], {"r": {("FAILED", LATER)}}) == []


def test_run_that_changed_just_now_is_left_to_its_webhook() -> None:
    run = listed(updated_at=LATER)
    assert runs_to_fetch([run], {}, NOON) == []
    assert runs_to_fetch([run], {}, LATER) == [run]
    assert runs_to_fetch([listed()], {}, NOON) == [listed()]


def test_run_listed_twice_is_fetched_once() -> None:
    assert runs_to_fetch([listed(), listed()], {}) == [listed()]


def test_runs_are_grouped_by_unknown_batch() -> None:
    runs = [listed("1", batch_id="a"), listed("2", batch_id="b"), listed("3", batch_id="b"), listed("4", batch_id=None)]
    assert runs_of_unknown_batches(runs, ["a"]) == {"b": runs[1:3]}


def test_call_did_not_make_a_batch_with_an_older_run() -> None:
    early, late, unknown = listed(created_at=NOON), listed(created_at=LATER), listed()
    assert may_be_made_since([late, unknown], LATER)
    assert not may_be_made_since([late, early, unknown], LATER)
    assert may_be_made_since([early], None)


def test_runs_in_progress_are_fetched_only_if_an_input_must_lack_a_run() -> None:
    runs = [listed("1"), listed("2", "PROCESSING"), listed("3", "PENDING")]
    assert unidentified_runs(runs, {}, 3) == []
    assert unidentified_runs(runs, {"2": {("PROCESSING", None)}}, 4) == [runs[2]]


def test_page_is_read_without_entries_that_are_not_runs() -> None:
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
    assert read == ListedRun("r", "FAILED", "b", NOON, LATER, NOON)
    assert read_page([{"id": "r", "status": "S", "batchId": 3, "createdAt": "?", "updatedAt": None, "endTime": 5}]) == [
        ListedRun("r", "S")
    ]
