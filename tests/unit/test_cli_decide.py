"""The commands that pause and resume describe their effect, and ``doubt show`` offers only possible decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import respx

from everyrun.cli import exits
from everyrun.cli.pause import describe_change
from everyrun.submission.decisions.doubts import forced_decisions, possible_decisions, waits_for
from everyrun.submission.decisions.pauses import pause_counts
from tests.unit.cli import SUBMISSION, everyrun


def answer(*, paused: bool, changed: bool = True, sent: int = 0, **waits: int) -> dict[str, Any]:
    inputs = {"submitted": sent, **pause_counts(waits), "waits_for": waits}
    return {"workflow_id": "workflow_1", "paused": paused, "changed": changed, "inputs": inputs}


def test_pause_reports_what_it_stops_and_what_it_does_not() -> None:
    found = answer(paused=True, sent=1200, submission_paused=3100, calling=900, held=1)
    assert describe_change("submissions", "sub_1", found) == [
        "Paused: 3,100 waiting inputs will not be sent.",
        "900 inputs are in a call in progress, which will be completed.",
        "1 input is in doubt. For details, run: everyrun doubt list --submission sub_1",
        "Submitted already, and not affected: 1,200 inputs.",
    ]
    again = describe_change("workflows", "workflow_1", answer(paused=True, changed=False, workflow_paused=1))
    assert again == [
        "workflow_1 was paused already (its first reason is kept, the new one is not): "
        "1 waiting input will not be sent."
    ]


@respx.mock
def test_resume_reports_what_will_be_sent() -> None:
    route = respx.post(f"{SUBMISSION}/v1/submissions/sub_1/resume")
    route.respond(json=answer(paused=False, queued=3000, retry=100))
    text = everyrun("submission", "resume", "sub_1", "--reason", "it was right").stderr
    assert text == "Resumed: 3,100 waiting inputs will be sent.\n"
    route.respond(json=answer(paused=False, changed=False))
    assert "was not paused: 0 waiting" in everyrun("submission", "resume", "sub_1", "--reason", "x").stderr


@pytest.mark.parametrize(
    ("waits", "text"),
    [
        (
            {"workflow_paused": 5},
            "Still waiting: 5 inputs, because the workflow is paused. Resume it: everyrun ",
        ),
        (
            {"submission_paused": 5},
            "Still waiting: 5 inputs, of paused submissions",
        ),
        ({"secrets_removed": 5}, "Cannot be sent: 5 inputs, whose links and passwords were deleted"),
    ],
)
def test_resume_reports_inputs_that_still_wait_and_the_next_step(waits: dict[str, int], text: str) -> None:
    lines = describe_change("submissions", "sub_1", answer(paused=False, **waits))
    assert lines[0] == "Resumed: 0 waiting inputs will be sent."
    assert lines[1].startswith(text)


NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def doubt(
    state: str, ends_in: float, sweeps: int, *, files_lost: bool = False, cancellation: str | None = None
) -> dict[str, Any]:
    ends = NOW + timedelta(seconds=ends_in)
    found = {"state": state, "window_ends": ends, "sweeps": sweeps, "files_lost": files_lost, "idempotency_key": "k"}
    return found | {"cancellation": cancellation}


@pytest.mark.parametrize(
    ("found", "now_possible", "forced"),
    [
        (doubt("in_doubt", 60, 0), ["adopt"], ["resend", "discard"]),
        (doubt("in_doubt", -60, 1), ["adopt"], ["resend", "discard"]),
        (doubt("in_doubt", -60, 1, files_lost=True), ["adopt"], ["discard"]),
        (doubt("held", -60, 2), ["adopt", "resend", "discard"], []),
        (doubt("held", -60, 2, files_lost=True), ["adopt", "discard"], []),
        (doubt("held", -60, 2, cancellation="can_1"), ["adopt", "discard"], []),
        (doubt("in_doubt", 60, 0, cancellation="can_1"), ["adopt"], ["discard"]),
    ],
)
def test_only_decisions_that_are_possible_now_are_offered(
    found: dict[str, Any], now_possible: list[str], forced: list[str]
) -> None:
    assert (possible_decisions(found, NOW), forced_decisions(found, NOW)) == (now_possible, forced)


def test_a_held_chunk_waits_for_what_can_be_decided() -> None:
    assert waits_for(doubt("held", -60, 1), NOW) == "a person's decision: adopt"
    assert waits_for(doubt("held", -60, 2), NOW) == "a person's decision: adopt or resend or discard"


@respx.mock
def test_show_offers_possible_decisions_and_names_forced_ones() -> None:
    shown = {
        **dict.fromkeys(("submission_id", "workflow_id", "inputs", "reason", "batch_id")),
        "chunk": "c1",
        "state": "in_doubt",
        "waits_for": "evidence",
        "can": ["adopt"],
        "with_force": ["discard"],
        "attempts": [],
        "evidence": [],
        "decisions": [],
    }
    respx.get(f"{SUBMISSION}/v1/doubts/c1").respond(json=shown)
    text = everyrun("doubt", "show", "c1").stdout
    assert "everyrun doubt adopt c1 BATCH --reason WHY" in text
    assert "everyrun doubt discard" not in text
    later = "you can discard once the doubt window has ended and two sweeps are complete; to do it now, add --force"
    assert later in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--all",), "give it with --why"),
        (("--all", "webhook/1"), "select messages in one way"),
        ((), "select messages in one way"),
    ],
)
def test_discard_without_a_terminal_needs_why_and_does_not_prompt(options: tuple[str, ...], message: str) -> None:
    done = everyrun("quarantine", "discard", *options)
    assert done.exit_code == exits.USAGE
    assert message in done.stderr


def test_chunk_whose_call_is_in_progress_waits_for_its_end() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    doubt = {"state": "sending", "files_lost": False, "window_ends": None, "sweeps": 0}
    assert waits_for(doubt, now).startswith("the end of its call")
