"""A run and its life: PENDING, PROCESSING, an end. What becomes of it is a function of the seed and its number."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

from everyrun.emulator.faults import Dice

#: SDK 1.20.0, types/workflow_run_status.py.
STATUSES = (
    *("PENDING", "PROCESSING", "CANCELLING", "NEEDS_REVIEW"),
    *("PROCESSED", "FAILED", "CANCELLED", "REJECTED"),
)
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
#: The steps of the workflow.
STEPS = ("PARSE", "EXTRACT")
#: Statuses in which a run has results of its steps.
WITH_STEPS = frozenset({"PROCESSED", "REJECTED", "NEEDS_REVIEW"})
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
    *("events", "delivered", "dropped", "past"),
)
#: What a run looked like before a person had it run again, or reviewed it.
_MOMENT = ("status", "starts_at", "ends_at", "reviewed_at", "note")


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
    #: How many webhook events there were (one for each endpoint), were delivered, will never be.
    events: int = 0
    delivered: int = 0
    dropped: int = 0
    #: The values of ``_MOMENT`` at the end of each generation before this one.
    past: list[list[Any]] = field(default_factory=list)

    @property
    def started(self) -> bool:
        """Whether it was ever PROCESSING; a run that was cancelled before has a ``starts_at`` of 0."""
        return self.status != "PENDING" and self.starts_at > 0

    def by_clock(self, ahead: float) -> Run:
        """The run as a clock that is ``ahead`` by so many seconds would have dated it."""
        if not ahead:
            return self
        shown = copy.copy(self)
        shown.created_at += ahead
        shown.updated_at += ahead
        shown.ends_at += ahead
        # 0 says that it was never started.
        shown.starts_at += ahead if self.starts_at else 0.0
        shown.reviewed_at = None if self.reviewed_at is None else self.reviewed_at + ahead
        return shown

    def next_generation(self) -> None:
        """From here on the run goes its way anew; what it was until now stays known."""
        self.past.append([getattr(self, name) for name in _MOMENT])
        self.generation += 1

    def at(self, generation: int) -> Run:
        """The run as it was at the end of a generation, or as it is in the present one. Not to be changed."""
        if generation >= self.generation:
            return self
        then = copy.copy(self)
        for name, value in zip(_MOMENT, self.past[generation], strict=True):
            setattr(then, name, value)
        return then

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
        run.starts_at = at + takes * 0.3 * self.dice.number("waits", subject) if run.generation == 0 else at
        run.ends_at = at + takes
        run.outcome = "PROCESSED"
        if run.generation == 0:
            if self.dice.strikes("fail", subject):
                run.outcome = "FAILED"
            elif self.dice.strikes("review", subject):
                run.outcome = "NEEDS_REVIEW"
            run.listed_at = at + self.dice.seconds("list_lag", subject)


def _digest(seed: int, kind: str, number: int) -> str:
    return hashlib.blake2b(f"{seed}/{kind}/{number}".encode(), digest_size=12).hexdigest()
