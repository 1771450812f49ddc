"""The report on a submission, and whether independent numbers agree. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everyrun.projection.merge import SETTLED


def imbalances(
    expected: int,
    kept: Mapping[str, int],
    counted: Mapping[str, int],
    lines: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What does not add up: each with what it is about, what was expected and what was found.

    ``kept`` are the counters by status, with WAITING, SENDING and IN_DOUBT; ``counted`` are the rows of results by
    status; ``lines`` those of the view ``report``, one an attempt.
    """
    problems = []
    total = sum(kept.values())
    if total != expected:
        problems.append({"what": "inputs by the kept counters", "expected": expected, "found": total})
    if kept.get("WAITING", 0) < 0:
        problems.append({"what": "more inputs are known than were handed in", "expected": expected, "found": total})
    for status in sorted({*kept, *counted} - {"WAITING", "SENDING", "IN_DOUBT"}):
        if kept.get(status, 0) != counted.get(status, 0):
            found = {"expected": kept.get(status, 0), "found": counted.get(status, 0)}
            problems.append({"what": f"rows with status {status}", **found})
    for line in lines:
        problems += _of_batch(line)
    return problems


def _of_batch(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    if line["balanced"]:
        return []
    batch = line["batch_id"] or f"{line['chunk']}/{line['attempt']}"
    runs = line["runs_in_results"] + line["runs_in_duplicates"]
    problems = []
    if runs != line["runs_observed"]:
        problems.append({"batch": batch, "what": "runs observed", "expected": line["runs_observed"], "found": runs})
    if line["duplicates"] != line["runs_in_duplicates"]:
        found = {"expected": line["duplicates"], "found": line["runs_in_duplicates"]}
        problems.append({"batch": batch, "what": "duplicate runs", **found})
    if line["counts"] != line["counted_rows"]:
        problems.append(
            {"batch": batch, "what": "inputs by status", "expected": line["counts"], "found": line["counted_rows"]}
        )
    return problems or [{"batch": batch, "what": "not balanced", "expected": 0, "found": 1}]


def standing(expected: int, kept: Mapping[str, int]) -> dict[str, Any]:
    """How far it is: expected, settled, open, and the inputs by status, by the kept counters alone."""
    by_status = {status: number for status, number in sorted(kept.items()) if number}
    settled = sum(number for status, number in by_status.items() if status in SETTLED)
    return {"expected": expected, "settled": settled, "open": expected - settled, "by_status": by_status}


def report(
    submission: Mapping[str, Any],
    kept: Mapping[str, int],
    counted: Mapping[str, int],
    lines: Sequence[Mapping[str, Any]],
    states: Mapping[str, int],
    unmatched: Mapping[str, int],
    pending_deliveries: int,
    overdue: Mapping[str, int],
) -> dict[str, Any]:
    """The whole report, as the API answers it; ``unmatched`` are the runs without an input by the reason for it,
    ``overdue`` the inputs open for too long by theirs."""
    expected = submission["expected"]
    problems = imbalances(expected, kept, counted, lines)
    return {
        "submission_id": submission["submission_id"],
        "workflow_id": submission["workflow_id"],
        "workflow_version": submission["workflow_version"],
        "created_at": submission["created_at"].isoformat(),
        **standing(expected, kept),
        "unmatched": sum(unmatched.values()),
        "unmatched_by_reason": dict(unmatched),
        "duplicates": sum(line["duplicates"] for line in lines),
        "pending_deliveries": pending_deliveries,
        "overdue": sum(overdue.values()),
        "overdue_by_reason": dict(overdue),
        "batches": dict(sorted(states.items())),
        "balanced": not problems,
        "imbalances": problems,
    }
