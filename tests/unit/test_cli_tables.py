"""Tables of the command line print ids and texts unchanged, also if they contain brackets."""

from __future__ import annotations

import pytest
import respx

from everyrun.cli.checks import show_bad_rows
from tests.unit.cli import QUERY, SUBMISSION, everyrun, page

#: Rich would drop the first as a style, and fail at the second as an unmatched closing tag.
NAMES = ["Invoice [final].pdf", "scan[/b].pdf"]


def run(*command: str) -> str:
    answer = everyrun(*command)
    assert answer.exit_code == 0, answer.output
    return answer.output


@pytest.mark.parametrize("text", NAMES)
@respx.mock
def test_results(text: str) -> None:
    respx.get(url__regex=f"{QUERY}/v1/submissions/sub_1/.*").respond(json={})
    row = {"external_id": text, "status": "FAILED", "run_id": "run_1", "failure_reason": f"of {text}"}
    respx.get(f"{QUERY}/v1/results").mock(return_value=page("results", [row]))
    assert run("results", "sub_1").count(text) == 2


@pytest.mark.parametrize("text", NAMES)
@respx.mock
def test_overdue(text: str) -> None:
    row = {
        "input_id": f"sub_1:{text}",
        "run_id": None,
        "status": "PENDING",
        "sent_at": "2026-01-01T00:00",
        "reason": "",
    }
    chunk = {"chunk": "c1", "inputs": 3, "status": "IN_DOUBT", "until": None, "reason": text, "what_to_do": None}
    respx.get(f"{QUERY}/v1/overdue").mock(return_value=page("inputs", [row], unsent=[chunk]))
    shown = run("overdue")
    assert f"sub_1:{text}" in shown
    assert shown.count(text) == 2


@pytest.mark.parametrize("text", NAMES)
@respx.mock
def test_unmatched(text: str) -> None:
    row = {"run_id": "run_1", "batch_id": None, "status": text, "reason": "", "first_seen": "", "alarming": False}
    respx.get(f"{QUERY}/v1/unmatched").mock(return_value=page("unmatched", [row], by_reason={}))
    assert text in run("unmatched", "list")


@pytest.mark.parametrize("text", NAMES)
@respx.mock
def test_reason_of_waiting_inputs(text: str) -> None:
    waits = {"waits_for": "held", "status": "WAITING", "inputs": 1, "reason": text, "what_to_do": None}
    stands = {"expected": 1, "settled": 0, "open": 1, "by_status": {"WAITING": 1}, "waiting": [waits]}
    respx.get(url__regex=f"{QUERY}/v1/submissions/sub_1/.*").respond(json=stands)
    row = {"submission_id": "sub_1", "created_at": "", "expected": 1}
    respx.get(f"{SUBMISSION}/v1/submissions").mock(return_value=page("submissions", [row]))
    assert text in run("list")


@pytest.mark.parametrize("text", NAMES)
def test_bad_rows(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    show_bad_rows(1, [{"row": 1, "id": text, "field": "file", "reason": f"not {text}"}])
    assert capsys.readouterr().err.count(text) == 2
