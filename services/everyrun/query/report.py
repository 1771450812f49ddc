"""Make the report of a submission, and check that numbers which were counted independently agree. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from everyrun.projection.rules.merge import SETTLED
from everyrun.query.estimate import Estimate
from everyrun.waiting import Waiting, by_status, lost, waiting_of


class Polling(msgspec.Struct, frozen=True):
    """Results that are missing for inputs that were sent, and the poll that fetches them if no webhook arrives.

    ``missing`` is the number of results. ``polled`` is true if at least one of their batches was polled before.
    ``next_poll_in`` is the number of seconds until the next poll. It is negative if that poll is late, and null if no
    poll is planned.
    """

    missing: int
    polled: bool
    next_poll_at: str | None
    next_poll_in: float | None


def polling_of(row: Mapping[str, Any]) -> Polling | None:
    """Convert a row of the SQL statement ``polling``. Return None if no result is missing."""
    if not row["missing"]:
        return None
    at, polled = row["next_at"], bool(row["polled"])
    if at is None:
        return Polling(row["missing"], polled, None, None)
    return Polling(row["missing"], polled, at.isoformat(), round(row["seconds"], 1))


class Counts(msgspec.Struct, frozen=True):
    """The numbers of a submission's inputs, by status and by what they wait for."""

    #: Number of inputs with a row in the table results, by status, from the stored counters.
    rows: dict[str, int]
    #: The other inputs, grouped by what they wait for.
    waiting: list[Waiting]
    #: Number of inputs whose latest state is in the queue and not yet in the result tables.
    in_transit: int
    #: Number of inputs in ``waiting`` that have waited too long, by what they wait for.
    late: dict[str, int]
    #: Results that are missing for sent inputs, or None if no result is missing.
    polling: Polling | None = None
    #: Number of runs of registered batches whose metadata fit several inputs.
    ambiguous: int = 0
    #: Number of inputs in ``waiting`` that the tables show with the status of an earlier try, by this status.
    untold: dict[str, int] = {}
    #: True if failed inputs may be retried automatically.
    will_retry: bool = False
    #: When the submission will be done, and what delays it.
    estimate: Estimate | None = None

    @property
    def needs_person(self) -> dict[str, int]:
        """The number of inputs or runs that only a person can move forward, by reason."""
        found = {"needs_review": self.rows.get("NEEDS_REVIEW", 0), "ambiguous_metadata": self.ambiguous}
        return {reason: number for reason, number in found.items() if number}

    @property
    def by_status(self) -> dict[str, int]:
        """The number of all inputs, with and without a row in results, by status."""
        kept = by_status(self.waiting)
        for status, number in self.rows.items():
            kept[status] = kept.get(status, 0) + number - self.untold.get(status, 0)
        return kept


def counts_of(
    submission_id: str,
    expected: int,
    rows: Mapping[str, int],
    unsent: Iterable[Mapping[str, Any]],
    polling: Polling | None = None,
    ambiguous: int = 0,
    untold: Mapping[str, int] | None = None,
    will_retry: bool = False,
) -> Counts:
    """Combine the counts from the tables (``rows``) and from the queue (``unsent``).

    ``untold`` counts inputs that are in both, because the tables do not know their new try yet.

    If the sum is less than ``expected``, the queue lost the other inputs because an old backup was restored. They are
    counted as WAITING.
    """
    groups = list(unsent)
    waiting = [waiting_of(group) for group in groups]
    late: dict[str, int] = {}
    for group in groups:
        late[group["waits_for"]] = late.get(group["waits_for"], 0) + group["late"]
    known_twice = dict(untold or {})
    missing = expected + sum(known_twice.values()) - sum(rows.values()) - sum(one.inputs for one in waiting)
    if missing > 0:
        waiting.append(lost(submission_id, missing))
        late["queue_lost"] = late.get("queue_lost", 0) + missing
    in_transit = sum(group["in_transit"] for group in groups)
    return Counts(dict(rows), waiting, in_transit, late, polling, ambiguous, known_twice, will_retry)


def imbalances(
    expected: int,
    kept: Mapping[str, int],
    counted: Mapping[str, int],
    lines: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return each pair of numbers that should agree and do not: what they count, and both numbers.

    ``kept`` contains the stored counters by status, including WAITING, SENDING and IN_DOUBT. ``counted`` contains the
    number of rows in results by status. ``lines`` are rows of the view ``report``, one per attempt.
    """
    problems = []
    total = sum(kept.values())
    if total != expected:
        problems.append({"what": "inputs by the stored counters", "expected": expected, "found": total})
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
    runs = line["runs_in_results"] + line["runs_in_duplicates"] + line["runs_in_superseded"]
    problems = []
    if runs != line["runs_observed"]:
        problems.append({"batch": batch, "what": "runs observed", "expected": line["runs_observed"], "found": runs})
    if line["duplicates"] != line["runs_in_duplicates"]:
        found = {"expected": line["duplicates"], "found": line["runs_in_duplicates"]}
        problems.append({"batch": batch, "what": "duplicate runs", **found})
    if line["superseded"] != line["runs_in_superseded"]:
        found = {"expected": line["superseded"], "found": line["runs_in_superseded"]}
        problems.append({"batch": batch, "what": "superseded runs", **found})
    if line["counts"] != line["counted_rows"]:
        problems.append(
            {"batch": batch, "what": "inputs by status", "expected": line["counts"], "found": line["counted_rows"]}
        )
    return problems or [{"batch": batch, "what": "not balanced", "expected": 0, "found": 1}]


def standing(expected: int, counts: Counts) -> dict[str, Any]:
    """Return a submission's progress in the API's form: numbers of inputs, and what unsent inputs are waiting for."""
    shown = {status: number for status, number in sorted(counts.by_status.items()) if number}
    settled = sum(number for status, number in shown.items() if status in SETTLED)
    return {
        "expected": expected,
        "settled": settled,
        "open": expected - settled,
        "by_status": shown,
        "waiting": msgspec.to_builtins(counts.waiting),
        "in_transit": counts.in_transit,
        "polling": msgspec.to_builtins(counts.polling),
        "needs_person": counts.needs_person,
        "will_retry": counts.will_retry,
        "estimate": msgspec.to_builtins(counts.estimate),
    }


def report(
    submission: Mapping[str, Any],
    counts: Counts,
    counted: Mapping[str, int],
    lines: Sequence[Mapping[str, Any]],
    states: Mapping[str, int],
    unmatched: Mapping[str, int],
    pending_deliveries: int,
    overdue: Mapping[str, int],
) -> dict[str, Any]:
    """Return the whole report in the form of the API.

    For ``counted`` and ``lines`` see :func:`imbalances`. The other counts are: in ``states`` the attempts, by state; in
    ``unmatched`` the runs without a known input, by reason; in ``overdue`` the inputs that have been open for too long,
    by reason. The report is balanced if all numbers agree and no input is in transit.
    """
    expected = submission["expected"]
    told = {status: number - counts.untold.get(status, 0) for status, number in counted.items()}
    problems = imbalances(expected, counts.by_status, told, lines)
    return {
        "submission_id": submission["submission_id"],
        "workflow_id": submission["workflow_id"],
        "workflow_version": submission["workflow_version"],
        "created_at": submission["created_at"].isoformat(),
        **standing(expected, counts),
        "unmatched": sum(unmatched.values()),
        "unmatched_by_reason": dict(unmatched),
        "duplicates": sum(line["duplicates"] for line in lines),
        "superseded": sum(line["superseded"] for line in lines),
        "pending_deliveries": pending_deliveries,
        "overdue": sum(overdue.values()),
        "overdue_by_reason": dict(overdue),
        "batches": dict(sorted(states.items())),
        "balanced": not problems and not counts.in_transit,
        "imbalances": problems,
    }
