"""Explain why inputs wait: the reason, until when, and what helps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from everyrun.waiting import WAITS_FOR, waiting_of

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
        ("sending_window", "at most why may be open at Extend", "everyrun overdue sub_1"),
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
