"""A run and its life: PENDING, PROCESSING, an end. What becomes of it is a function of the seed and its number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from everyrun.emulator.faults import Dice

FINAL = frozenset({"PROCESSED", "FAILED", "CANCELLED", "REJECTED"})

#: Event of each status that has one (docs.extend.ai, webhooks/events).
EVENTS = {
    "PROCESSED": "workflow_run.completed",
    "FAILED": "workflow_run.failed",
    "NEEDS_REVIEW": "workflow_run.needs_review",
    "REJECTED": "workflow_run.rejected",
    "CANCELLED": "workflow_run.cancelled",
}
STEP_EVENT = "workflow_run.step_run.processed"
WORKFLOW_EVENTS = (*EVENTS.values(), STEP_EVENT)

#: (failureReason, failureMessage): reasons known from docs.extend.ai.
FAILURES = (
    ("DOCUMENT_PROCESSOR_ERROR", "The document processor could not complete this document."),
    ("FAILED_TO_PROCESS_FILE", "The file could not be processed: it is damaged or of an unsupported type."),
    ("INTERNAL_ERROR", "An internal error occurred."),
)


#: What is remembered of a run, since it follows from nothing else.
_KEPT = (
    *("status", "starts_at", "ends_at", "updated_at", "outcome", "generation", "deleted", "reviewed_at", "note"),
    *("events", "delivered", "dropped"),
)


@dataclass(slots=True)
class Run:
    """One run. Times are Unix seconds; ``metadata`` and ``file`` are JSON text."""

    number: int
    id: str
    batch_id: str | None
    workflow_id: str
    version: str
    file: bytes
    metadata: bytes
    created_at: float
    status: str = "PENDING"
    outcome: str = "PROCESSED"
    starts_at: float = 0.0
    ends_at: float = 0.0
    listed_at: float = 0.0
    updated_at: float = 0.0
    generation: int = 0
    deleted: bool = False
    reviewed_at: float | None = None
    note: str | None = None
    #: How many webhook events there were, were delivered, were dropped on purpose.
    events: int = 0
    delivered: int = 0
    dropped: int = 0

    @property
    def started(self) -> bool:
        """Whether it was ever PROCESSING."""
        return self.status not in ("PENDING",) and not (self.status == "CANCELLED" and self.ends_at < self.starts_at)

    def kept(self) -> dict[str, Any]:
        """What must be remembered, since it follows from nothing else."""
        return {name: getattr(self, name) for name in _KEPT}


@dataclass(slots=True)
class Plan:
    """How runs go: how long they take, and how many fail or are reviewed."""

    dice: Dice
    seed: int
    shortest: float
    longest: float

    def run_id(self, number: int) -> str:
        """The id of the run of this number."""
        return f"workflow_run_{_digest(self.seed, 'run', number)}"

    def arrange(self, run: Run, at: float) -> None:
        """Plan a run that is created, or begun again, now."""
        subject = f"{run.number}/{run.generation}"
        takes = self.shortest + (self.longest - self.shortest) * self.dice.number("takes", subject)
        run.starts_at = at + takes * 0.3 * self.dice.number("waits", subject)
        run.ends_at = at + takes
        run.outcome = "PROCESSED"
        if run.generation == 0:
            if self.dice.strikes("fail", subject):
                run.outcome = "FAILED"
            elif self.dice.strikes("review", subject):
                run.outcome = "NEEDS_REVIEW"
            run.listed_at = at + self.dice.seconds("list_lag", subject)
        run.updated_at = at


def _digest(seed: int, kind: str, number: int) -> str:
    return hashlib.blake2b(f"{seed}/{kind}/{number}".encode(), digest_size=12).hexdigest()
