"""Extend's statuses and errors are told apart: what is over, what must be tried again, and what is no answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from everyrun.extend import reserved
from everyrun.extend.client import ExtendError
from everyrun.projection.rules.match import fingerprint
from everyrun.submission.cancellations.outcomes import (
    MAX_REFUSALS,
    Counts,
    ExtendProblemError,
    outcome_of_error,
    outcome_of_status,
)
from everyrun.submission.cancellations.runs import input_of


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("PENDING", None),
        ("PROCESSING", None),
        ("CANCELLING", "cancelled"),
        ("CANCELLED", "cancelled"),
        ("NEEDS_REVIEW", "in_review"),
        ("PROCESSED", "finished"),
        ("FAILED", "finished"),
        ("REJECTED", "finished"),
        ("SOMETHING_NEW", "finished"),
    ],
)
def test_each_status_has_an_outcome_unless_the_run_can_be_cancelled(status: str, outcome: str | None) -> None:
    assert outcome_of_status(status) == outcome


def test_a_refusal_counts_only_if_it_repeats_and_a_missing_run_at_once() -> None:
    refused = ExtendError(400, "INVALID_REQUEST", "no", from_extend=True)
    assert [outcome_of_error(refused, n + 1) for n in range(MAX_REFUSALS)] == [None] * (MAX_REFUSALS - 1) + ["refused"]
    assert outcome_of_error(ExtendError(404, "NOT_FOUND", "no", from_extend=True), 1) == "gone"


@pytest.mark.parametrize(
    "error",
    [
        ExtendError(0, "UNREACHABLE", "no answer"),
        ExtendError(404, "UNREADABLE", "a proxy's page"),
        ExtendError(403, "FORBIDDEN", "no", from_extend=True),
        ExtendError(429, "RATE_LIMIT_EXCEEDED", "wait", from_extend=True),
        ExtendError(503, "INTERNAL_ERROR", "no", from_extend=True),
    ],
)
def test_other_errors_say_nothing_about_the_run(error: ExtendError) -> None:
    with pytest.raises(ExtendProblemError):
        outcome_of_error(error, MAX_REFUSALS)


def test_counts_add_up() -> None:
    rows = {"SUBMITTED": 1, "PENDING": 2, "NEEDS_REVIEW": 3, "PROCESSED": 4, "CANCELLED": 5, "WAITING": 9}
    counts = Counts({"waiting": 10, "sending": 20, "in_doubt": 30, "held": 40}, {"submitted": 50, "refused": 60}, rows)
    assert counts.plain() == {
        "not_sent": 10,
        "calling": 20,
        "in_doubt": 70,
        "at_extend": 53,
        "in_review": 3,
        "settled": 69,
    }
    assert counts.cancellable == 153


def test_a_run_names_its_input_by_the_reserved_key_or_if_registered_by_its_metadata() -> None:
    metadata: dict[str, Any] = {"n": 1}
    marked = reserved.mark(metadata, reserved.Reserved("inst_1", "sub_1:a", "sub_1.c00001", 1, 1))
    assert input_of(marked, "inst_1", None) == "sub_1:a"
    assert input_of(marked, "inst_2", None) is None
    assert input_of(metadata, "inst_1", None) is None
    known = fingerprint(msgspec.json.encode(metadata)) or ""
    assert input_of(metadata, "inst_1", {known: ["sub_1:a"]}) == "sub_1:a"
    assert input_of(metadata, "inst_1", {known: ["sub_1:a", "sub_1:b"]}) is None, "two inputs have these metadata"
    assert input_of({"n": 2}, "inst_1", {known: ["sub_1:a"]}) is None
