"""``everyrun cancel`` shows what it affects, asks, and names ids that it cannot cancel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from everyrun.cli import exits
from everyrun.cli.cancel import describe, describe_outcomes
from tests.unit.cli import SUBMISSION, everyrun, page

NONE = dict.fromkeys(("not_sent", "calling", "in_doubt", "at_extend", "in_review", "settled"), 0)
OUTCOMES = dict.fromkeys(("cancelled_unsent", "cancelled", "finished", "in_review", "refused", "gone"), 0)
URL = f"{SUBMISSION}/v1/submissions/sub_1/cancellations"
WHY = ("--reason", "the wrong folder")


def preview(cancellation_id: str | None = None, **inputs: int) -> dict[str, Any]:
    head = {"cancellation_id": cancellation_id, "submission_id": "sub_1", "scope": "submission", "batch_id": None}
    return {**head, "inputs": NONE | inputs}


def shown(*, ended: bool = True, problem: str | None = None, **outcomes: int) -> dict[str, Any]:
    at = "2026-11-27T12:00:00+00:00"
    return {
        **preview("can_1", at_extend=0 if ended else 3),
        "by": "ann",
        "reason": "the wrong folder",
        "requested_at": at,
        "ended_at": at if ended else None,
        "problem": problem,
        "outcomes": OUTCOMES | outcomes,
    }


def answers(*bodies: dict[str, Any]) -> respx.Route:
    return respx.post(URL).mock(side_effect=[httpx.Response(202, json=body) for body in bodies])


def test_every_kind_of_input_gets_a_sentence() -> None:
    lines = describe(NONE | {"not_sent": 1, "calling": 2, "in_doubt": 3, "at_extend": 4, "in_review": 5, "settled": 6})
    assert lines == [
        "1 input is not sent, and will be cancelled at once.",
        "2 inputs are in a call in progress. If Extend accepts it, the runs will be cancelled at Extend.",
        "3 inputs are in doubt. They will not be sent again. Everyrun first waits to see if Extend accepted them.",
        "4 inputs are at Extend. Their runs will be cancelled there.",
        "Not affected: 5 inputs wait for a review at Extend, which does not cancel such runs.",
        "Not affected: 6 inputs already settled.",
    ]


@respx.mock
def test_a_dry_run_only_counts() -> None:
    route = answers(preview(not_sent=7))
    done = everyrun("cancel", "sub_1", *WHY, "--dry-run")
    assert (done.exit_code, done.stderr) == (0, "7 inputs are not sent, and will be cancelled at once.\n")
    assert [json.loads(call.request.content)["dry_run"] for call in route.calls] == [True]


@respx.mock
def test_without_a_terminal_the_command_needs_yes_and_then_names_the_cancellation() -> None:
    route = answers(preview(at_extend=7), preview(at_extend=7), preview("can_1", at_extend=7))
    refused = everyrun("cancel", "sub_1", *WHY)
    assert (refused.exit_code, len(route.calls)) == (exits.USAGE, 1)
    assert "to confirm, add --yes" in refused.stderr
    done = everyrun("cancel", "sub_1", *WHY, "--yes")
    assert done.exit_code == 0
    assert "Cancellation can_1 is in progress. See: everyrun cancellations sub_1" in done.stderr
    body = json.loads(route.calls.last.request.content)
    assert (body["reason"], "ids" in body, "dry_run" in body) == ("the wrong folder", False, False)


@respx.mock
def test_if_there_is_nothing_to_cancel_the_command_does_not_ask() -> None:
    route = answers(preview(settled=9))
    done = everyrun("cancel", "sub_1", *WHY)
    assert done.exit_code == 0
    assert done.stderr == "There is nothing to cancel.\nNot affected: 9 inputs already settled.\n"
    assert len(route.calls) == 1


@respx.mock
def test_wait_shows_the_outcomes() -> None:
    answers(preview(not_sent=7), preview("can_1", not_sent=7))
    respx.get(f"{SUBMISSION}/v1/cancellations/can_1").respond(json=shown(cancelled_unsent=7))
    done = everyrun("cancel", "sub_1", *WHY, "--yes", "--wait", "--json")
    assert "7 cancelled before they were sent" in done.stderr
    assert json.loads(done.stdout)["outcomes"]["cancelled_unsent"] == 7


@respx.mock
def test_ids_are_read_from_a_file_and_need_a_submission(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("a\n\nb\n")
    route = answers(preview(not_sent=2), preview("can_1", not_sent=2))
    assert everyrun("cancel", "sub_1", *WHY, "--yes", "--ids", str(file)).exit_code == 0
    assert json.loads(route.calls.last.request.content)["ids"] == ["a", "b"]
    refused = everyrun("cancel", "batch_1", *WHY, "--ids", str(file))
    assert refused.exit_code == exits.USAGE
    assert "--ids needs a submission id" in refused.stderr


@respx.mock
def test_unknown_ids_end_the_command_with_the_services_message(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("a\n")
    message = "sub_1 has no inputs with these ids: a. Nothing was cancelled."
    respx.post(URL).respond(422, json={"code": "UNKNOWN_INPUTS", "message": message})
    done = everyrun("cancel", "sub_1", *WHY, "--ids", str(file))
    assert done.exit_code == exits.ERROR
    assert message in done.stderr


@respx.mock
def test_a_batch_is_cancelled_by_its_id() -> None:
    route = respx.post(f"{SUBMISSION}/v1/batches/batch_1/cancellations")
    route.respond(202, json=preview(at_extend=1))
    assert everyrun("cancel", "batch_1", *WHY, "--dry-run").exit_code == 0


@respx.mock
def test_the_list_shows_each_cancellation_with_outcomes_and_problems() -> None:
    respx.get(f"{SUBMISSION}/v1/submissions/sub_1").respond(json={})
    listed = respx.get(f"{SUBMISSION}/v1/cancellations")
    listed.mock(return_value=page("cancellations", [shown()]))
    one = respx.get(f"{SUBMISSION}/v1/cancellations/can_1")
    one.respond(json=shown(ended=False, problem="403 FORBIDDEN: no", cancelled=2))
    lines = everyrun("cancellations", "sub_1").stdout.splitlines()
    assert lines == [
        "can_1  2026-11-27 12:00  the submission, by ann: the wrong folder",
        "  in progress",
        "  2 cancelled at Extend",
        "  3 inputs are not settled yet",
        "  Extend does not cancel runs at the moment: 403 FORBIDDEN: no. Everyrun keeps trying",
    ]
    listed.mock(return_value=page("cancellations", []))
    assert "Nothing of this submission was cancelled" in everyrun("cancellations", "sub_1").stderr


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_has_words(name: str) -> None:
    assert any(line.startswith("5 ") for line in describe_outcomes(shown(**{name: 5})))
