"""Explain what unsent inputs wait for: the reason, until when, and what a person can do. Pure.

An unsent input has no row in ``everyrun.results``; its status is that of its chunk in the queue. The SQL function
``everyrun_queue.unsent`` finds such inputs. See docs/explanation/status.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

#: Each value of ``waits_for``, and what it says about the input.
WAITS_FOR = {
    "unannounced": "Kafka has not acknowledged its submission or its retry yet",
    "workflow_paused": "its workflow is paused",
    "submission_paused": "its submission is paused",
    "retry": "Extend did not accept it for now, and it is retried",
    "cancelling": "it was cancelled, and it is not sent any more",
    "secrets_removed": "the links and passwords that it needs were removed from the queue",
    "sending_window": "as many inputs as allowed are open at Extend (the sending window)",
    "queued": "it waits for its turn",
    "calling": "its call is in progress, or its worker ended during it",
    "in_doubt": "the outcome of its call is unknown, and evidence may still arrive",
    "sweeps": "the outcome of its call is unknown, and complete sweeps after its window must follow",
    "held": "a person must decide",
    "in_transit": "its outcome is in the log, and not in the tables yet",
    "queue_lost": "it was accepted and not sent, and the queue has lost it",
}


class Waiting(Struct, frozen=True):
    """Inputs of one submission that wait for the same thing.

    ``waits_for`` is a key of WAITS_FOR, and ``reason`` explains it. ``until`` is the latest time (RFC 3339) at which
    the wait ends, or None if it is unknown. ``what_to_do`` is the command that helps, or None if nobody needs to do
    anything.
    """

    status: str
    waits_for: str
    inputs: int
    reason: str
    until: str | None
    what_to_do: str | None


def waiting_of(row: Mapping[str, Any]) -> Waiting:
    """Explain what the inputs in a row of ``everyrun_queue.unsent`` wait for.

    The row can also combine several rows whose inputs wait for the same thing.
    """
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
    """Return the explanation for accepted inputs that are neither in the queue nor in the result tables.

    The queue loses inputs in this way if an old backup is restored.
    """
    row = {"status": "WAITING", "waits_for": "queue_lost", "inputs": inputs, "until": None, "detail": None}
    return waiting_of({**row, "submission_id": submission_id, "workflow_id": None})


def _words(row: Mapping[str, Any], until: str) -> tuple[str, str | None]:
    why = f" ({row['detail']})" if row["detail"] else ""
    match row["waits_for"]:
        case "unannounced":
            return "waits for Kafka to acknowledge the submission or the retry", "everyrun doctor"
        case "workflow_paused":
            return f"the workflow is paused{why}", f"everyrun workflow resume {row['workflow_id']} --reason WHY"
        case "submission_paused":
            return f"the submission is paused{why}", f"everyrun submission resume {row['submission_id']} --reason WHY"
        case "retry":
            return f"not accepted for now{why}; retried at {until}", None
        case "secrets_removed":
            reason = "the links and passwords that it needs were removed from the queue after a set time"
            return reason, "submit these inputs again, as a new submission (see EVERYRUN_SECRETS_KEPT_UNSETTLED)"
        case "sending_window":
            reason = f"waits for the sending window: at most {row['detail']} may be open at Extend"
            return reason, f"if this lasts, everyrun overdue {row['submission_id']} (what keeps the window full)"
        case "queued":
            return f"waits for its turn{why}", None
        case "calling":
            return f"a call is in progress; if its worker died, that is detected by {until}", None
        case "in_doubt":
            return f"in doubt{why}: waits for evidence until {until}, then it is resent", None
        case "sweeps":
            reason = f"in doubt{why}: no evidence arrived; after two complete sweeps it is resent"
            return reason, "if this lasts, everyrun doctor (the reconciler sweeps)"
        case "held":
            return f"held for a person's decision{why}", f"everyrun doubt list --submission {row['submission_id']}"
        case "cancelling" if until:
            reason = f"cancelled, but a call is in doubt{why}: waits for evidence until {until} and for two sweeps"
            return reason, "if this lasts, everyrun doctor (the reconciler sweeps)"
        case "cancelling":
            return "is being cancelled", None
        case "in_transit":
            return "its outcome is in the log; the tables follow", "if this lasts, everyrun doctor (the processor)"
        case "queue_lost":
            return "accepted and not sent, and lost with the queue", "repeat the upload with the same Idempotency-Key"
        case other:
            return f"waits for {other}{why}", None


def by_status(waiting: Iterable[Waiting]) -> dict[str, int]:
    """Return how many of the waiting inputs have each status."""
    counts: dict[str, int] = {}
    for one in waiting:
        counts[one.status] = counts.get(one.status, 0) + one.inputs
    return counts
