"""What inputs wait for is explained, and the counts of a report are combined."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from everyrun.doctor.facts import Late
from everyrun.doctor.judge_progress import judge_late
from everyrun.query.report import counts_of, report
from everyrun.waiting import WAITS_FOR, Waiting, waiting_of

UNTIL = datetime(2026, 11, 27, 10, 4, 3, tzinfo=UTC)


def row(waits_for: str, status: str = "WAITING", inputs: int = 400, **more: Any) -> dict[str, Any]:
    ids = {"submission_id": "sub_1", "workflow_id": "workflow_1"}
    given = {"status": status, "waits_for": waits_for, "inputs": inputs, "detail": None, "until": None}
    return {**ids, **given, "in_transit": 0, "late": 0, **more}


@pytest.mark.parametrize(
    ("waits_for", "reason", "what_to_do"),
    [
        ("unannounced", "Kafka", "everyrun doctor"),
        ("workflow_paused", "paused (why)", "everyrun workflow resume workflow_1 --reason WHY"),
        ("submission_paused", "paused (why)", "everyrun submission resume sub_1 --reason WHY"),
        ("retry", "not accepted for now (why); retried at 2026-11-27 10:04:03 UTC", None),
        ("queued", "turn", None),
        ("calling", "detected by 2026-11-27 10:04:03 UTC", None),
        ("in_doubt", "until 2026-11-27 10:04:03 UTC, then it is resent", None),
        ("sweeps", "two complete sweeps", "if this lasts, everyrun doctor"),
        ("held", "person's decision (why)", "everyrun doubt list --submission sub_1"),
        ("in_transit", "the tables follow", "everyrun doctor"),
        ("queue_lost", "lost with the queue", "Idempotency-Key"),
    ],
)
def test_each_wait_has_a_reason_and_a_remedy(waits_for: str, reason: str, what_to_do: str | None) -> None:
    said = waiting_of(row(waits_for, detail="why", until=UNTIL))
    assert reason in said.reason
    assert (said.what_to_do or "").startswith(what_to_do or "") or (what_to_do or "") in (said.what_to_do or "")
    assert (said.what_to_do is None) == (what_to_do is None)
    assert said.until == "2026-11-27T10:04:03+00:00"
    assert waits_for in WAITS_FOR


def test_counts_add_up_and_missing_inputs_are_lost() -> None:
    unsent = [row("calling", "SENDING", 30, in_transit=30, late=30), row("queued", inputs=50)]
    counts = counts_of("sub_1", 100, {"PROCESSED": 15, "SENDING": 0}, unsent)
    assert counts.by_status == {"PROCESSED": 15, "SENDING": 30, "WAITING": 55}
    assert (counts.in_transit, counts.late) == (30, {"calling": 30, "queued": 0, "queue_lost": 5})
    assert counts.waiting[-1].waits_for == "queue_lost"
    assert counts_of("sub_1", 95, {"PROCESSED": 15}, unsent).late == {"calling": 30, "queued": 0}


def a_report(unsent: list[dict[str, Any]], rows: dict[str, int], counted: dict[str, int]) -> dict[str, Any]:
    submission = {"submission_id": "sub_1", "workflow_id": "w", "workflow_version": None, "expected": 80}
    counts = counts_of("sub_1", 80, rows, unsent)
    return report({**submission, "created_at": UNTIL}, counts, counted, [], {}, {}, 0, {})


def test_report_is_balanced_only_if_all_numbers_agree() -> None:
    sending = row("calling", "SENDING", 80, in_transit=80)
    said = a_report([sending], {}, {})
    assert (said["balanced"], said["imbalances"], said["in_transit"]) == (False, [], 80)
    assert a_report([{**sending, "in_transit": 0}], {}, {})["balanced"] is True
    wrong = a_report([], {"PROCESSED": 80}, {"PROCESSED": 79})
    assert (wrong["balanced"], wrong["in_transit"]) == (False, 0)
    more = a_report([row("queued", inputs=81)], {}, {})
    assert [p["what"] for p in more["imbalances"]] == ["inputs by the stored counters"]


def test_doctor_warns_or_fails_for_late_inputs() -> None:
    def late(waits_for: str, *, passed: bool = False) -> Late:
        return Late(Waiting("WAITING", waits_for, 400, "why", None, "everyrun x"), 2, passed)

    levels = {kind: judge_late([late(kind)])[0].level for kind in ("unannounced", "held", "in_doubt", "calling")}
    assert levels == {"unannounced": "failed", "held": "warning", "in_doubt": "warning", "calling": "warning"}
    (finding,) = judge_late([late("calling", passed=True)])
    assert finding.level == "failed"
    assert "400 inputs of 2 submissions" in finding.found
    assert "everyrun x" in finding.remedy
    assert judge_late([])[0].level == "ok"
