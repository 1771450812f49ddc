"""Define runs, and decide how each of them goes: how long it takes, and the status in which it ends.

Both depend only on the seed and on the number of the run, so tests can repeat them.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

from everyrun.emulator.faults import Dice

#: All statuses of a run (SDK 1.20.0, types/workflow_run_status.py).
STATUSES = (
    *("PENDING", "PROCESSING", "CANCELLING", "NEEDS_REVIEW"),
    *("PROCESSED", "FAILED", "CANCELLED", "REJECTED"),
)
FINAL = frozenset({"PROCESSED", "FAILED", "CANCELLED", "REJECTED"})

#: The webhook event that Extend sends when a run reaches a status (docs.extend.ai, webhooks/events).
EVENTS = {
    "PROCESSED": "workflow_run.completed",
    "FAILED": "workflow_run.failed",
    "NEEDS_REVIEW": "workflow_run.needs_review",
    "REJECTED": "workflow_run.rejected",
    "CANCELLED": "workflow_run.cancelled",
}
STEP_EVENT = "workflow_run.step_run.processed"
#: The types of the steps that every finished run has, in order.
STEPS = ("PARSE", "EXTRACT")
#: The statuses in which a run has the results of its steps.
WITH_STEPS = frozenset({"PROCESSED", "REJECTED", "NEEDS_REVIEW"})
WORKFLOW_EVENTS = (*EVENTS.values(), STEP_EVENT)

#: The pairs (failureReason, failureMessage) of failed runs. The reasons are from docs.extend.ai.
FAILURES = (
    ("DOCUMENT_PROCESSOR_ERROR", "The document processor could not complete this document."),
    ("FAILED_TO_PROCESS_FILE", "The file could not be processed: it is damaged or of an unsupported type."),
    ("INTERNAL_ERROR", "An internal error occurred."),
)


#: The attributes of a run that the store keeps as one document.
_KEPT = (
    *("status", "starts_at", "ends_at", "updated_at", "outcome", "generation", "deleted", "reviewed_at", "note"),
    *("events", "delivered", "dropped", "past"),
)
#: The attributes that a rerun or a review replaces.
_PER_GENERATION = ("status", "starts_at", "ends_at", "reviewed_at", "note")


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
    #: How many webhook events the run has in total, how many were delivered, and how many never will be. An event that
    #: is sent to several endpoints counts once per endpoint.
    events: int = 0
    delivered: int = 0
    dropped: int = 0
    #: Each rerun or review begins a new generation. This list contains, for each earlier generation, the values that
    #: the attributes in ``_PER_GENERATION`` had at its end.
    past: list[list[Any]] = field(default_factory=list)

    @property
    def started(self) -> bool:
        """True if the run was ever PROCESSING. If a run is cancelled before that, its ``starts_at`` is 0."""
        return self.status != "PENDING" and self.starts_at > 0

    def by_clock(self, clock_offset: float) -> Run:
        """Return the run with its times shifted by ``clock_offset`` seconds."""
        if not clock_offset:
            return self
        shown = copy.copy(self)
        shown.created_at += clock_offset
        shown.updated_at += clock_offset
        shown.ends_at += clock_offset
        # A starts_at of 0 means that the run never started, so it is not shifted.
        shown.starts_at += clock_offset if self.starts_at else 0.0
        shown.reviewed_at = None if self.reviewed_at is None else self.reviewed_at + clock_offset
        return shown

    def next_generation(self) -> None:
        """Begin the next generation of the run, for a rerun or a review. Keep the values of the present generation."""
        self.past.append([getattr(self, name) for name in _PER_GENERATION])
        self.generation += 1

    def at(self, generation: int) -> Run:
        """Return the run as it was at the end of a generation. For the present generation return the run itself.

        The caller must not change the result.
        """
        if generation >= self.generation:
            return self
        then = copy.copy(self)
        for name, value in zip(_PER_GENERATION, self.past[generation], strict=True):
            setattr(then, name, value)
        return then

    def kept(self) -> dict[str, Any]:
        """Return the attributes that can change, which the store must keep."""
        return {name: getattr(self, name) for name in _KEPT}


@dataclass(slots=True)
class Plan:
    """Decides how long each run takes (``shortest`` to ``longest`` seconds), and which runs fail or need a review."""

    dice: Dice
    seed: int
    shortest: float
    longest: float

    def run_id(self, number: int) -> str:
        """Return the id of the run with this number."""
        return f"workflow_run_{digest(self.seed, 'run', number)}"

    def schedule(self, run: Run, at: float) -> None:
        """Set the times and the outcome of a run that is created or rerun at ``at`` (Unix seconds)."""
        subject = f"{run.number}/{run.generation}"
        duration = self.shortest + (self.longest - self.shortest) * self.dice.number("takes", subject)
        run.starts_at = at + duration * 0.3 * self.dice.number("waits", subject) if run.generation == 0 else at
        run.ends_at = at + duration
        run.outcome = "PROCESSED"
        if run.generation == 0:
            if self.dice.strikes("fail", subject):
                run.outcome = "FAILED"
            elif self.dice.strikes("review", subject):
                run.outcome = "NEEDS_REVIEW"
            run.listed_at = at + self.dice.seconds("list_lag", subject)


def digest(seed: int, kind: str, number: int) -> str:
    """Return an id without its prefix (``workflow_run_``, ``batch_``). It depends on the arguments alone."""
    return hashlib.blake2b(f"{seed}/{kind}/{number}".encode(), digest_size=12).hexdigest()
