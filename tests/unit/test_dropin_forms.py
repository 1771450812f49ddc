"""The pure modules of submission/dropin: forms, bodies, lists, and the keys of batches."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from everyrun.submission.dropin.app import scope_of
from everyrun.submission.dropin.batch_body import max_inputs, read_batch
from everyrun.submission.dropin.batches import SAME_FOR, batch_of, given_key, is_open, keys_of
from everyrun.submission.dropin.extend_form import Problem, own_batch_id, problem_answer, refusal, submission_of
from everyrun.submission.dropin.listing import (
    AtExtend,
    InTables,
    list_query,
    parameters,
    run_shown,
    summary,
)
from everyrun.submission.ids import new_submission_id
from everyrun.submission.intake.rows import GoodRow, check_row

RUN = {
    "object": "workflow_run",
    "id": "workflow_run_1",
    "status": "PROCESSED",
    "metadata": {"row": 1, "everyrun:input": {"input": "sub_1:1"}},
    "batchId": "batch_extend",
    "usage": {"credits": 2, "breakdown": [1]},
    "initialRunAt": None,
    "stepRuns": [{"result": {"big": "x" * 100}}],
}


def test_a_batch_id_and_its_submission_lead_to_each_other() -> None:
    submission = new_submission_id()
    assert submission_of(own_batch_id(submission)) == submission
    for other in ("batch_", "batch_xK9", "sub_" + "0" * 26, "batch_" + "I" * 26, own_batch_id(submission) + "0"):
        assert submission_of(other) is None


def test_an_error_has_all_fields_of_extends_errors() -> None:
    answer = problem_answer(Problem(429, "slow down", headers={"retry-after": "1"}))
    body = json.loads(answer.body)
    assert (body["code"], body["message"], body["retryable"]) == ("RATE_LIMIT_EXCEEDED", "slow down", True)
    assert answer.headers == {"retry-after": "1", "x-extend-request-id": body["requestId"]}
    assert json.loads(problem_answer(Problem(400, "x")).body)["retryable"] is False


def test_a_refusal_is_told_as_extend_told_it() -> None:
    one = refusal("400 INVALID_REQUEST: inputs[3].file.id: there is no file file_x")
    assert (one.status, one.code, one.message) == (
        400,
        "INVALID_REQUEST",
        "inputs[3].file.id: there is no file file_x",
    )
    assert refusal("discarded by ada: too old").status == 400
    assert refusal(None).message


def test_the_key_of_a_body_changes_with_the_time_and_names_the_one_before() -> None:
    early, _ = keys_of("ada", b"{}", 10 * SAME_FOR - 1)
    late, recent = keys_of("ada", b"{}", 10 * SAME_FOR)
    assert early != late
    assert recent.earlier_key == early
    assert late.startswith(recent.lock)
    assert keys_of("bob", b"{}", 0)[1].lock != keys_of("ada", b"{}", 0)[1].lock != keys_of("ada", b"{} ", 0)[1].lock
    assert given_key("ada", "k") not in (given_key("bob", "k"), given_key("ada", "l"))


@pytest.mark.parametrize(
    ("chunks", "waiting"),
    [
        ([("waiting", 0, False)], True),
        ([("sending", 1, False)], True),
        ([("waiting", 0, True)], False),
        ([("waiting", 1, False)], False),
        ([("sending", 2, False)], False),
        ([("in_doubt", 1, False)], False),
        ([("submitted", 1, False)], False),
        ([("waiting", 0, False), ("waiting", 0, False)], False),
    ],
)
def test_an_answer_waits_only_for_the_first_call_of_a_single_chunk(chunks: list, waiting: bool) -> None:
    rows = [{"state": state, "attempt": attempt, "paused": paused} for state, attempt, paused in chunks]
    assert is_open(rows) is waiting


def test_only_a_submission_of_one_accepted_chunk_has_extends_batch_id() -> None:
    accepted = {"state": "submitted", "batch_id": "batch_1", "reason": None}
    assert batch_of([accepted]) == "batch_1"
    assert batch_of([accepted, accepted]) is None
    assert batch_of([{**accepted, "state": "in_doubt"}]) is None
    with pytest.raises(Problem):
        batch_of([{"state": "refused", "batch_id": None, "reason": "400 X: y"}])


def test_unknown_fields_of_an_input_are_ignored_as_extend_does() -> None:
    given = {
        "workflow": {"id": "w", "version": None, "name": "x"},
        "priority": 7,
        "extra": 1,
        "inputs": [
            {
                "id": "mine",
                "file": {"url": "https://x.example/1", "name": None, "size": 3},
                "metadata": None,
                "more": 1,
            },
            {"id": "a", "file": {"url": "https://x.example/2"}, "metadata": {"a": 1.5}},
        ],
    }
    batch = read_batch(json.dumps(given).encode(), 1000)
    assert (batch.workflow_id, batch.workflow_version, batch.priority) == ("w", None, 7)
    rows = [check_row(n, value, "sub_x", 100_000) for n, value in batch.rows]
    assert all(isinstance(row, GoodRow) for row in rows), rows
    assert [row.external_id for row in rows] == ["1", "2"]
    assert [row.metadata for row in rows] == [b"{}", b'{"a":1.5}']


@pytest.mark.parametrize("header", ["0", "-1", "x", "1.5", "100001", "1" * 30, "\u0661"])
def test_a_wrong_number_of_inputs_is_refused(header: str) -> None:
    with pytest.raises(Problem, match="x-everyrun-max-inputs"):
        max_inputs(header)


def test_a_token_is_bound_to_its_filters() -> None:
    given = {"batchId": "batch_1", "status": "FAILED", "maxPageSize": "5"}
    query = list_query(given)
    for at in (InTables("2026-01-01T00:00:00Z", "run"), AtExtend(2), AtExtend(0, "a:/+=")):
        token = query.token(at)
        assert list_query({**given, "maxPageSize": "9", "nextPageToken": token}).at == at
        with pytest.raises(Problem, match="other filters"):
            list_query({**given, "status": "PROCESSED", "nextPageToken": token})
    with pytest.raises(Problem, match="not valid"):
        list_query({**given, "nextPageToken": "bm90IG91cnM="})
    pairs = dict(query.for_extend("batch_2", "t"))
    assert pairs == {"status": "FAILED", "maxPageSize": "5", "batchId": "batch_2", "nextPageToken": "t"}


def test_a_parameter_is_given_once_and_without_nul() -> None:
    assert parameters("a=1&b=") == {"a": "1", "b": ""}
    for wrong in ("a=1&a=2", "a=%00", "a=%ff", "&".join(f"p{n}=1" for n in range(60))):
        with pytest.raises(Problem):
            parameters(wrong)


def test_a_run_is_shown_compact_without_the_reserved_key_and_with_the_callers_batch() -> None:
    shown = run_shown(json.dumps(RUN), "batch_mine")
    assert b" " not in shown
    assert json.loads(shown) == {**RUN, "batchId": "batch_mine", "metadata": {"row": 1}}
    assert json.loads(run_shown(json.dumps({**RUN, "metadata": None}), None))["metadata"] is None


def test_a_summary_has_the_fields_of_a_summary_and_no_others() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_900, UTC)
    shown = json.loads(msgspec.json.encode(summary(json.dumps(RUN), "batch_mine", at, at)))
    assert (shown["batchId"], shown["createdAt"], shown["usage"]) == (
        "batch_mine",
        "2026-01-02T03:04:05.678Z",
        {"credits": 2},
    )
    assert not {"metadata", "stepRuns", "failureReason", "reviewed"} & set(shown)
    initial = json.dumps({**RUN, "initialRunAt": "2026-01-01T00:00:00.000Z"})
    assert json.loads(msgspec.json.encode(summary(initial, "b", at, at)))["createdAt"] == "2026-01-01T00:00:00.000Z"


def test_reading_sending_and_changing_need_different_scopes() -> None:
    assert scope_of("GET", "/webhook_endpoints") == "read"
    assert scope_of("POST", "/workflow_runs/batch") == "submit"
    assert scope_of("POST", "/workflow_runs/x") == "operate"
    assert scope_of("PUT", "/files/upload") == "operate"
