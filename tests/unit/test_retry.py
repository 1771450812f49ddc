"""A retry has the right name, and the command line describes it."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from everyrun.cli import retry
from everyrun.cli.decisions import decision_row
from everyrun.log.keys import lineage, retry_chunk, retry_of
from everyrun.query.tries import tries_of

FOUND: dict[str, Any] = {
    "submission_id": "sub_1",
    "inputs": 3,
    "by_status": {"FAILED": 2, "REFUSED": 1},
    "by_reason": {"OCR_ERROR": 2},
    "credits": 4.5,
    "needs_files": 0,
    "needs_files_ids": [],
    "not_chosen": 0,
    "not_chosen_ids": [],
}


@pytest.mark.parametrize(
    ("chunk", "number"),
    [("sub_1.c00001", 0), ("sub_1.c00001-2", 0), ("sub_1.c00001-r3", 3), ("sub_1.c00001-r12-1-2", 12), ("batch_r1", 0)],
)
def test_the_retry_follows_from_the_id_of_the_chunk_and_its_parts(chunk: str, number: int) -> None:
    assert retry_of(chunk) == number


def test_the_chunk_of_a_retry_has_the_key_of_the_original_chunk() -> None:
    assert lineage(retry_chunk("sub_1.c00001", 7)) == "sub_1.c00001"
    assert retry_of(retry_chunk("sub_1.c00001", 7)) == 7


def test_a_preview_says_what_will_be_sent_and_what_it_cost() -> None:
    text = " ".join(retry.describe(FOUND))
    assert "3 inputs will be sent again: 2 FAILED, 1 REFUSED." in text
    assert "OCR_ERROR 2" in text
    assert "4.5 credits" in text


def test_a_preview_names_ids_that_are_left_out_and_inputs_that_need_files() -> None:
    found = {
        **FOUND,
        "not_chosen": 7,
        "not_chosen_ids": [{"id": f"a{n}", "status": "PROCESSED"} for n in range(7)],
        "needs_files": 1,
        "needs_files_ids": ["b"],
    }
    text = " ".join(retry.describe(found))
    assert "7 ids of those given: a0 (PROCESSED)" in text
    assert "a4 (PROCESSED), …" in text
    assert "1 input cannot be sent again" in text
    assert "--manifest FILE" in text


def test_a_preview_of_nothing_says_so() -> None:
    none = {**FOUND, "inputs": 0, "by_status": {}, "by_reason": {}, "credits": 0}
    assert retry.describe(none) == ["No input meets the conditions, so nothing will be sent again."]


def test_conditions_on_metadata_are_read_and_bad_ones_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert retry._metadata(["metadata.customer=7", "metadata.a.b=x=y"]) == {"customer": "7", "a.b": "x=y"}
    for bad in ("customer=7", "metadata.=7", "metadata.customer"):
        with pytest.raises(typer.Exit):
            retry._metadata([bad])
        assert bad in capsys.readouterr().err


def test_tries_are_in_order_and_a_waiting_one_has_no_attempts() -> None:
    requests = [
        {"retry": 0, "requested_by": None, "reason": None, "created_at": None},
        {"retry": 2, "requested_by": "ann", "reason": "fixed", "created_at": None},
    ]
    attempts = [
        {"chunk": "sub_1.c00001", "attempt": 1, "run_id": "r1"},
        {"chunk": "sub_1.c00001-2", "attempt": 1, "run_id": "r2"},
        {"chunk": "sub_1.c00001-r1", "attempt": 1, "run_id": "r3"},
    ]
    found = tries_of(requests, attempts)
    assert [(one["try"], one["retry"], one["by"], len(one["attempts"])) for one in found] == [
        (1, 0, None, 2),
        (2, 1, None, 1),
        (3, 2, "ann", 0),
    ]


def test_the_row_of_a_waiting_try_says_who_requested_it_and_why() -> None:
    one = {"try": 2, "requested_at": "2026-02-09T10:00:00+00:00", "by": "ann", "reason": "fixed", "attempts": []}
    assert retry.try_row(one, {}) == ["2", "2026-02-09 10:00 by ann", "", "WAITING", "", "", "", "fixed"]


def test_a_decision_without_a_person_is_everyruns() -> None:
    none = dict.fromkeys(("workflow_id", "submission_id", "chunk", "attempt", "batch_id", "source", "decided_by"))
    row = {
        **none,
        "kind": "workflow-paused",
        "workflow_id": "w",
        "reason": "402",
        "decided_at": "2026-03-03T12:00:00+00:00",
    }
    assert decision_row(row) == ["2026-03-03 12:00:00", "workflow-paused", "w", "Everyrun", "402"]
