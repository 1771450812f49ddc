"""What pausing and resuming say, and which decisions on a chunk in doubt are offered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import respx

from everyrun.cli import exits
from everyrun.cli.pause import lines_of
from everyrun.submission.decisions.doubts import forced_decisions, possible_decisions, waits_for
from everyrun.submission.decisions.pauses import pause_counts
from tests.unit.cli import SUBMISSION, everyrun


def answer(*, paused: bool, changed: bool = True, sent: int = 0, **waits: int) -> dict[str, Any]:
    inputs = {"submitted": sent, **pause_counts(waits), "waits_for": waits}
    return {"workflow_id": "workflow_1", "paused": paused, "changed": changed, "inputs": inputs}


def test_pausing_says_what_it_stops_and_what_it_does_not() -> None:
    found = answer(paused=True, sent=1200, submission_paused=3100, calling=900, held=1)
    assert lines_of("submissions", "sub_1", found) == [
        "Paused: 3,100 waiting inputs will not be sent.",
        "900 inputs are in a call that is in progress, which ends as it does.",
        "1 input is in doubt. See: everyrun doubt list --submission sub_1",
        "Sent before, and not affected: 1,200 inputs.",
    ]
    again = lines_of("workflows", "workflow_1", answer(paused=True, changed=False, workflow_paused=1))
    assert again == [
        "workflow_1 was paused already (the first reason stays, the new one is not kept): "
        "1 waiting input will not be sent."
    ]


@respx.mock
def test_resuming_says_what_will_be_sent() -> None:
    route = respx.post(f"{SUBMISSION}/v1/submissions/sub_1/resume")
    route.respond(json=answer(paused=False, queued=3000, retry=100))
    said = everyrun("submission", "resume", "sub_1", "--reason", "it was right").stderr
    assert said == "Resumed: 3,100 waiting inputs will be sent.\n"
    route.respond(json=answer(paused=False, changed=False))
    assert "was not paused: 0 waiting" in everyrun("submission", "resume", "sub_1", "--reason", "x").stderr


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (
            {"workflow_paused": 5},
            "Still waiting: 5 inputs, since the workflow is paused. Resume it too: everyrun ",
        ),
        (
            {"submission_paused": 5},
            "Still waiting: 5 inputs, of submissions that are paused themselves",
        ),
        ({"secrets_removed": 5}, "Cannot be sent: 5 inputs, whose links and passwords are no longer kept"),
    ],
)
def test_what_is_not_sent_all_the_same_is_said_with_what_helps(waits: dict[str, int], said: str) -> None:
    lines = lines_of("submissions", "sub_1", answer(paused=False, **waits))
    assert lines[0] == "Resumed: 0 waiting inputs will be sent."
    assert lines[1].startswith(said)


NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def doubt(state: str, ends_in: float, sweeps: int, *, files_lost: bool = False) -> dict[str, Any]:
    ends = NOW + timedelta(seconds=ends_in)
    return {"state": state, "window_ends": ends, "sweeps": sweeps, "files_lost": files_lost, "idempotency_key": "k"}


@pytest.mark.parametrize(
    ("found", "now_possible", "forced"),
    [
        (doubt("in_doubt", 60, 0), ["adopt"], ["resend", "discard"]),
        (doubt("in_doubt", -60, 1), ["adopt"], ["resend", "discard"]),
        (doubt("in_doubt", -60, 1, files_lost=True), ["adopt"], ["discard"]),
        (doubt("held", -60, 2), ["adopt", "resend", "discard"], []),
        (doubt("held", -60, 2, files_lost=True), ["adopt", "discard"], []),
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
def test_show_offers_what_is_possible_and_says_what_is_later() -> None:
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
    said = everyrun("doubt", "show", "c1").stdout
    assert "everyrun doubt adopt c1 BATCH --reason WHY" in said
    assert "everyrun doubt discard" not in said
    assert "discard, once the window and two sweeps are over; now with --force" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--all",), "--why is needed"), (("--all", "webhook/1"), "name messages, or choose"), ((), "name messages")],
)
def test_a_discard_without_a_terminal_needs_why_and_asks_nothing(options: tuple[str, ...], said: str) -> None:
    done = everyrun("quarantine", "discard", *options)
    assert done.exit_code == exits.USAGE
    assert said in done.stderr


def test_a_chunk_whose_call_is_in_progress_waits_for_its_end() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    doubt = {"state": "sending", "files_lost": False, "window_ends": None, "sweeps": 0}
    assert waits_for(doubt, now).startswith("the end of its call")
