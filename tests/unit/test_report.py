"""A report combines counts, and is balanced only if all numbers agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from everyrun.query.report import counts_of, report

UNTIL = datetime(2026, 11, 27, 10, 4, 3, tzinfo=UTC)


def row(waits_for: str, status: str = "WAITING", inputs: int = 400, **more: Any) -> dict[str, Any]:
    ids = {"submission_id": "sub_1", "workflow_id": "workflow_1"}
    given = {"status": status, "waits_for": waits_for, "inputs": inputs, "detail": None, "until": None}
    return {**ids, **given, "in_transit": 0, "late": 0, **more}


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
