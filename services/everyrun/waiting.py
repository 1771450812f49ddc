"""What inputs without a result wait for: in words, until when, and what a person can do. Pure.

The rule is one, and is written as the SQL function ``everyrun_queue.unsent``: an input that has a row in
``everyrun.results`` has that row's status; the status of any other is the queue's word on its chunk. See
docs/explanation/status.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

#: What a chunk can wait for (``waits_for``), and what that means.
WAITS_FOR = {
    "unannounced": "Kafka has not acknowledged its submission yet",
    "workflow_paused": "its workflow is paused",
    "submission_paused": "its submission is paused",
    "retry": "it was not taken, and is retried",
    "secrets_removed": "the links and passwords that it would be sent with were taken out of the queue",
    "queued": "it has not been its turn yet",
    "calling": "its call is in progress, or its worker ended during it",
    "in_doubt": "the outcome of its call is unknown, and evidence may still come",
    "sweeps": "the outcome of its call is unknown, and complete sweeps after its window are awaited",
    "held": "a person must decide",
    "in_transit": "its outcome is in the log, and not in the tables yet",
    "queue_lost": "it was accepted and not sent, and the queue does not have it any more",
}


class Waiting(Struct, frozen=True):
    """Inputs of one submission that wait for the same thing.

    ``until`` is when that ends at the latest (RFC 3339; None where nobody can say), ``what_to_do`` the command that
    helps (None where nothing need be done).
    """

    status: str
    waits_for: str
    inputs: int
    reason: str
    until: str | None
    what_to_do: str | None


def waiting_of(row: Mapping[str, Any]) -> Waiting:
    """Explain a row of ``everyrun_queue.unsent``, or several that wait for the same, their inputs summed."""
    until: datetime | None = row["until"]
    reason, what_to_do = _words(row, "" if until is None else f"{until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")
    return Waiting(
        status=row["status"],
        waits_for=row["waits_for"],
        inputs=int(row["inputs"]),
        reason=reason,
        until=None if until is None else until.isoformat(),
        what_to_do=what_to_do,
    )


def lost(submission_id: str, inputs: int) -> Waiting:
    """Explain inputs that were accepted and of which neither the queue nor the tables have a chunk."""
    row = {"status": "WAITING", "waits_for": "queue_lost", "inputs": inputs, "until": None, "detail": None}
    return waiting_of({**row, "submission_id": submission_id, "workflow_id": None})


def _words(row: Mapping[str, Any], until: str) -> tuple[str, str | None]:
    why = f" ({row['detail']})" if row["detail"] else ""
    match row["waits_for"]:
        case "unannounced":
            return "waits for Kafka to acknowledge the submission", "everyrun doctor"
        case "workflow_paused":
            return f"the workflow is paused{why}", f"everyrun workflow resume {row['workflow_id']} --reason WHY"
        case "submission_paused":
            return f"the submission is paused{why}", f"everyrun submission resume {row['submission_id']} --reason WHY"
        case "retry":
            return f"not taken{why}; retried at {until}", None
        case "secrets_removed":
            reason = "its links and passwords were taken out of the queue, which keeps them for a set time only"
            return reason, "hand these inputs in again, as a submission of their own (EVERYRUN_SECRETS_KEPT_UNSETTLED)"
        case "queued":
            return f"waits for its turn{why}", None
        case "calling":
            return f"a call is in progress; if its worker ended, that is known by {until}", None
        case "in_doubt":
            return f"in doubt{why}: evidence is awaited until {until}, then it is resent", None
        case "sweeps":
            reason = f"in doubt{why}: no evidence came; two complete sweeps are awaited, then it is resent"
            return reason, "if it lasts, everyrun doctor (the reconciler sweeps)"
        case "held":
            return f"held for a person's decision{why}", f"everyrun doubt list --submission {row['submission_id']}"
        case "in_transit":
            return "its outcome is in the log; the tables follow", "if it lasts, everyrun doctor (the processor)"
        case "queue_lost":
            what_to_do = "repeat its upload with the same Idempotency-Key"
            return "accepted and not sent, and no longer in the queue", what_to_do
        case other:
            return f"waits for {other}{why}", None


def by_status(waiting: Iterable[Waiting]) -> dict[str, int]:
    """How many inputs have each status, among those that wait."""
    counts: dict[str, int] = {}
    for one in waiting:
        counts[one.status] = counts.get(one.status, 0) + one.inputs
    return counts
