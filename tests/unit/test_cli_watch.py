"""Following a submission: until nothing may still come."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import respx

from everyrun.cli import client, exits, watch
from everyrun.cli.progress import summary
from everyrun.cli.watch import follow, waiting_lines
from tests.unit.cli import QUERY, SUBMISSION, everyrun, page


class Told:
    """A client whose reports are given; nothing holds the submission up."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self.reports = list(reports)

    def progress(self, submission_id: str, within: float) -> dict[str, Any]:
        return self.reports[0]

    def report_if_quick(self, submission_id: str, within: float) -> dict[str, Any]:
        return self.reports.pop(0)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is waited, and what does not move is looked at at once."""
    monkeypatch.setattr(watch, "_STILL", 0.0)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)


def report(processed: int, running: int, **overdue: int) -> dict[str, Any]:
    by_status = {"PROCESSED": processed, "PROCESSING": running}
    counts = {"expected": processed + running, "settled": processed, "open": running}
    return {"by_status": by_status, "overdue_by_reason": overdue, "waiting": [], "will_retry": False, **counts}


def test_it_ends_when_all_are_settled():
    client = Told(report(1, 1), report(2, 0))
    assert follow(client, "sub_1") == exits.OK  # type: ignore[arg-type]
    assert len(client.reports) == 1


def test_it_ends_when_what_is_open_was_deleted_at_extend(capsys):
    client = Told(report(3, 2, deleted_upstream=1, still_running=1), report(4, 1, deleted_upstream=1))
    assert follow(client, "sub_1") == exits.INPUTS_FAILED  # type: ignore[arg-type]
    assert not client.reports
    said = " ".join(capsys.readouterr().err.split())
    assert "1 input is open" in said
    assert "everyrun overdue sub_1" in said


def progress(**by_status: int) -> dict[str, Any]:
    expected, settled = sum(by_status.values()), sum(n for s, n in by_status.items() if s != "PENDING")
    counts = {"expected": expected, "settled": settled, "open": expected - settled, "by_status": by_status}
    return {**counts, "waiting": [], "in_transit": 0, "will_retry": False}


def waits(waits_for: str, reason: str, what_to_do: str | None = None) -> dict[str, Any]:
    status = "IN_DOUBT" if waits_for == "in_doubt" else "WAITING"
    said = {"status": status, "waits_for": waits_for, "inputs": 400, "reason": reason}
    return {**said, "until": None, "what_to_do": what_to_do}


@respx.mock
def test_it_outlasts_a_service_that_is_away_and_says_so_once():
    answers = [
        httpx.Response(200, json=progress(PENDING=1)),
        httpx.ConnectError("refused"),
        httpx.Response(503, json={"code": "UNAVAILABLE", "message": "try again"}),
        httpx.Response(502, text="<html>"),
        httpx.Response(200, json=progress(PROCESSED=1)),
    ]
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(side_effect=answers)
    answer = everyrun("watch", "sub_1")
    assert answer.exit_code == exits.OK, answer.output
    assert answer.output.count("does not answer (ConnectError)") == 1
    assert answer.output.count("does not answer") == 1


@pytest.mark.parametrize(("away", "code"), [(httpx.ConnectError("no"), exits.NOT_FOUND), (503, exits.ERROR)])
@respx.mock
def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, away: Any, code: int):
    monkeypatch.setattr(watch, "PATIENCE", 0.01)
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    gone = httpx.Response(away, json={"message": "away"}) if isinstance(away, int) else None
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(return_value=gone, side_effect=None if gone else away)
    assert everyrun("watch", "sub_1").exit_code == code


@respx.mock
def test_what_is_not_there_ends_it_at_once():
    route = respx.get(f"{QUERY}/v1/submissions/sub_1/progress").respond(404, json={"message": "no submission"})
    assert everyrun("watch", "sub_1").exit_code == exits.NOT_FOUND
    assert route.call_count == 1


@respx.mock
def test_it_says_once_that_nothing_is_sent_and_why():
    paused = waits("workflow_paused", "the workflow is paused (402 [credits])", "everyrun workflow resume workflow_1")
    steps = [{**progress(PENDING=1), "waiting": [paused, waits("queued", "its turn")]}] * 5 + [progress(PROCESSED=1)]
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(
        side_effect=[httpx.Response(200, json=step) for step in steps]
    )
    counted = {**steps[0], "overdue_by_reason": {}}
    report_route = respx.get(f"{QUERY}/v1/submissions/sub_1/report").respond(json=counted)
    answer = everyrun("watch", "sub_1")
    assert answer.exit_code == exits.OK, answer.output
    assert answer.output.count("402 [credits]") == 1
    assert "everyrun workflow resume workflow_1" in answer.output
    assert "its turn" not in answer.output
    assert report_route.call_count == 4


@respx.mock
def test_the_whole_report_is_not_asked_for_while_it_moves_nor_by_list():
    steps = [progress(PENDING=2), progress(PENDING=1, PROCESSED=1), progress(PROCESSED=2)]
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(
        side_effect=[httpx.Response(200, json=step) for step in [*steps, {**steps[0], "waiting": [IN_DOUBT]}]]
    )
    row = {"submission_id": "sub_1", "created_at": "", "expected": 2}
    respx.get(f"{SUBMISSION}/v1/submissions").mock(return_value=page("submissions", [row]))
    assert everyrun("watch", "sub_1").exit_code == exits.OK
    assert "in doubt" in everyrun("list").output


IN_DOUBT = waits("in_doubt", "in doubt (no answer came)", "everyrun doubt list --submission sub_1")


def test_what_inputs_wait_for_is_said_with_what_helps():
    (line,) = waiting_lines({"waiting": [IN_DOUBT, waits("queued", "its turn")]})
    assert line == "400 inputs IN_DOUBT: in doubt (no answer came). You can: everyrun doubt list --submission sub_1"


@respx.mock
def test_a_report_is_in_transit_while_the_queue_and_the_tables_disagree():
    whole = {**progress(SENDING=400), "overdue_by_reason": {}, "unmatched_by_reason": {}, "imbalances": []}
    whole |= {"submission_id": "sub_1", "unmatched": 0, "duplicates": 0, "pending_deliveries": 0}
    route = respx.get(f"{QUERY}/v1/submissions/sub_1/report")
    route.respond(json={**whole, "in_transit": 400, "balanced": False, "waiting": [IN_DOUBT]})
    answer = everyrun("report", "sub_1")
    assert answer.exit_code == exits.OK, answer.output
    assert "in transit (400 inputs)" in answer.output
    assert "IN_DOUBT: in doubt (no answer" in answer.output
    route.respond(json={**whole, "balanced": True})
    assert "yes" in everyrun("report", "sub_1").output
    wrong = {"what": "rows with status FAILED", "expected": 1, "found": 0}
    route.respond(json={**whole, "imbalances": [wrong], "balanced": False})
    assert everyrun("report", "sub_1").exit_code == exits.ERROR


@respx.mock
def test_failures_are_listed_by_the_statuses_that_they_have():
    stands = progress(PROCESSED=1, REFUSED=2, CANCELLED=1)
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").respond(json=stands)
    answer = everyrun("watch", "sub_1")
    assert answer.exit_code == exits.INPUTS_FAILED
    said = "3 inputs failed; list them with: everyrun results sub_1 --status CANCELLED --status REFUSED\n"
    assert answer.output.endswith(said)

    def answered(request: httpx.Request) -> httpx.Response:
        asked = request.url.params.get_list("status")
        return page("results", [{"external_id": status, "status": status} for status in asked])

    respx.get(f"{QUERY}/v1/results").mock(side_effect=answered)
    listed = everyrun(*said.split(": everyrun ")[1].split(), "--format", "jsonl").output.splitlines()
    assert ["CANCELLED" in listed[0], "REFUSED" in listed[1], len(listed)] == [True, True, 2]


@respx.mock
def test_a_page_that_is_not_answered_is_asked_for_again():
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").respond(json=progress(PROCESSED=2))
    first, second = ({"external_id": name, "status": "PROCESSED"} for name in "ab")
    pages = [
        httpx.Response(200, json={"results": [first], "next_cursor": "more"}),
        httpx.Response(503, json={"code": "BUSY", "message": "try again"}),
        page("results", [second]),
    ]
    route = respx.get(f"{QUERY}/v1/results").mock(side_effect=pages)
    answer = everyrun("results", "sub_1", "--format", "jsonl")
    assert answer.exit_code == exits.OK, answer.output
    assert len(answer.stdout.splitlines()) == 2
    assert [call.request.url.params.get("cursor") for call in route.calls] == [None, "more", "more"]


@respx.mock
def test_a_report_that_takes_too_long_does_not_end_it():
    steps = [progress(PENDING=1)] * 3 + [progress(PROCESSED=1)]
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(
        side_effect=[httpx.Response(200, json=step) for step in steps]
    )
    slow = respx.get(f"{QUERY}/v1/submissions/sub_1/report").respond(504, json={"code": "TOO_SLOW", "message": ""})
    respx.get(f"{SUBMISSION}/v1/submissions/sub_1").respond(404, json={"message": "the queue was lost"})
    assert everyrun("watch", "sub_1").exit_code == exits.OK
    assert slow.call_count == 2


def polling(missing: int, seconds: float | None, *, polled: bool = True) -> dict[str, Any]:
    return {"polling": {"missing": missing, "polled": polled, "next_poll_at": None, "next_poll_in": seconds}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (polling(12, 20.4), "12 results missing; next poll in 20 s"),
        (polling(1, 0.3), "1 result missing; next poll now"),
        (polling(1200, 301), "1,200 results missing; next poll in 5 min"),
        (polling(12, -200), "12 results missing; next poll overdue. See: everyrun doctor (the reconciler polls)"),
        (polling(12, 43, polled=False), "12 results awaited from webhooks; first poll in 43 s"),
        ({"polling": None}, None),
        ({}, None),
    ],
)
def test_missing_results_are_said_with_the_next_poll(found: dict[str, Any], said: str | None):
    assert watch.polling_line(found) == said


@respx.mock
def test_what_polling_will_bring_is_said_by_watch_list_and_report():
    stands = {**progress(PENDING=12), **polling(12, 20)}
    steps = [stands, stands, progress(PROCESSED=12)]
    route = respx.get(f"{QUERY}/v1/submissions/sub_1/progress")
    route.mock(side_effect=[httpx.Response(200, json=step) for step in steps])
    whole = {**stands, "overdue_by_reason": {}, "unmatched_by_reason": {}, "imbalances": [], "balanced": True}
    whole |= {"submission_id": "sub_1", "unmatched": 0, "duplicates": 0, "pending_deliveries": 0}
    respx.get(f"{QUERY}/v1/submissions/sub_1/report").respond(json=whole)
    row = {"submission_id": "sub_1", "created_at": "", "expected": 12}
    respx.get(f"{SUBMISSION}/v1/submissions").mock(return_value=page("submissions", [row]))
    line = "12 results missing; next poll in 20 s"
    assert line in everyrun("watch", "sub_1").stderr
    route.mock(return_value=httpx.Response(200, json=stands))
    assert line in everyrun("list").stdout
    assert line in everyrun("report", "sub_1").stdout


def interrupt(_request: httpx.Request) -> httpx.Response:
    raise KeyboardInterrupt


@respx.mock
@pytest.mark.parametrize("command", ["watch", "submit"])
def test_after_an_interruption_it_says_that_the_submission_continues(tmp_path: Any, command: str) -> None:
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(side_effect=interrupt)
    accepted = {"submission_id": "sub_1", "expected": 1, "batches": 1}
    respx.post(f"{SUBMISSION}/v1/submissions").respond(202, json=accepted)
    rows = tmp_path / "rows.ndjson"
    rows.write_text('{"file": {"url": "https://e.com/a.pdf"}}')
    options = ("sub_1",) if command == "watch" else (str(rows), "--workflow", "w", "--wait")
    done = everyrun(command, *options)
    assert done.exit_code == exits.INTERRUPTED
    assert "The submission continues. Follow it with: everyrun watch sub_1" in done.output


@pytest.mark.parametrize(
    "command", [("overdue", "sub_nix"), ("results", "sub_nix"), ("doubt", "list", "--submission", "sub_nix")]
)
def test_a_submission_that_does_not_exist_is_an_error(command: tuple[str, ...]) -> None:
    missing = {"code": "NOT_FOUND", "message": "there is no submission sub_nix"}
    with respx.mock(assert_all_called=False) as router:
        router.get(url__regex=".*/v1/submissions/sub_nix.*").respond(404, json=missing)
        router.get(f"{QUERY}/v1/overdue").mock(return_value=page("inputs", [], unsent=[]))
        router.get(f"{SUBMISSION}/v1/doubts").mock(return_value=page("doubts", []))
        router.get(f"{QUERY}/v1/results").mock(return_value=page("results", []))
        done = everyrun(*command)
    assert done.exit_code == exits.NOT_FOUND
    assert "there is no submission sub_nix" in done.output


def test_inputs_that_need_a_review_are_not_called_running() -> None:
    found = {"by_status": {"NEEDS_REVIEW": 2, "PROCESSING": 1}, "expected": 3, "open": 3}
    assert {name: summary(found)[name] for name in ("running", "waiting for review")} == {
        "running": 1,
        "waiting for review": 2,
    }


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        ({"needs_review": 17}, "17 wait for review at Extend"),
        ({"needs_review": 1}, "1 waits for review at Extend"),
        ({"ambiguous_metadata": 3}, "3 runs are ambiguous: everyrun unmatched list"),
    ],
)
@respx.mock
def test_what_waits_for_a_person_is_said_and_ends_the_wait(needs: dict[str, int], line: str) -> None:
    """``watch`` never ended, and neither it nor ``list`` said why."""
    number = sum(needs.values())
    stands = {**progress(PROCESSED=3, NEEDS_REVIEW=number), "settled": 3, "open": number, "needs_person": needs}
    moving = {**stands, "open": number + 1, "expected": number + 4}
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").mock(
        side_effect=[httpx.Response(200, json=step) for step in [moving, moving, stands, stands]]
    )
    counts = {"unmatched_by_reason": {}, "imbalances": [], "unmatched": 0, "duplicates": 0, "pending_deliveries": 0}
    whole = {**moving, "submission_id": "sub_1", "overdue_by_reason": {}, "balanced": True, **counts}
    respx.get(f"{QUERY}/v1/submissions/sub_1/report").respond(json=whole)
    done = everyrun("watch", "sub_1")
    assert done.exit_code == exits.NEEDS_PERSON, done.output
    assert line in done.stderr
    assert f"3/{number + 4} settled: sent" in done.stderr, "a line of figures where there is no terminal"
    assert line in everyrun("report", "sub_1").stdout
    respx.get(f"{QUERY}/v1/submissions/sub_1/progress").respond(json=stands)
    row = {"submission_id": "sub_1", "created_at": "", "expected": 20}
    respx.get(f"{SUBMISSION}/v1/submissions").mock(return_value=page("submissions", [row]))
    assert line in everyrun("list").stdout


def test_the_history_of_a_submission_names_the_commands_for_it() -> None:
    done = everyrun("history", "sub_01k")
    assert done.exit_code == exits.USAGE
    assert "sub_01k is a submission" in done.output
    assert "everyrun report sub_01k" in done.output
