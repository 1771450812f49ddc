"""Following a submission: until nothing may still come."""

from __future__ import annotations

from typing import Any

from everyrun.cli import exits
from everyrun.cli.watch import follow


class Told:
    """A client whose reports are given."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self.reports = list(reports)

    def report(self, submission_id: str) -> dict[str, Any]:
        return self.reports.pop(0)


def report(processed: int, running: int, **overdue: int) -> dict[str, Any]:
    by_status = {"PROCESSED": processed, "PROCESSING": running}
    counts = {"expected": processed + running, "settled": processed, "open": running}
    return {"by_status": by_status, "overdue_by_reason": overdue, **counts}


def test_it_ends_when_all_are_settled():
    client = Told(report(1, 1), report(2, 0))
    assert follow(client, "sub_1") == exits.OK  # type: ignore[arg-type]
    assert not client.reports


def test_it_ends_when_what_is_open_was_deleted_at_extend(capsys):
    client = Told(report(3, 2, deleted_upstream=1, still_running=1), report(4, 1, deleted_upstream=1))
    assert follow(client, "sub_1") == exits.INPUTS_FAILED  # type: ignore[arg-type]
    assert not client.reports
    said = " ".join(capsys.readouterr().err.split())
    assert "1 inputs are open" in said
    assert "everyrun overdue sub_1" in said
