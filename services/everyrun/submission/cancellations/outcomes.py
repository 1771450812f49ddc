"""Decide what the cancellation of a run at Extend has come to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from everyrun.errors import EveryrunError
from everyrun.extend.client import ExtendError

Outcome = Literal["cancelled", "finished", "in_review", "refused", "gone"]

#: Extend can cancel only runs with these statuses (SDK 1.20.0, workflow_runs/client.py cancel).
CANCELLABLE = frozenset({"PENDING", "PROCESSING"})
_CANCELLED = frozenset({"CANCELLING", "CANCELLED"})
#: After this many refusals, a run that the list still shows as cancellable counts as refused.
MAX_REFUSALS = 3
#: Statuses of the inputs that are at Extend, and may still be cancelled or end by themselves.
AT_EXTEND = ("SUBMITTED", "PENDING", "PROCESSING", "CANCELLING")


class ExtendProblemError(EveryrunError):
    """Extend cannot be asked at the moment, or does not allow it. The text says why."""


def outcome_of_status(status: object) -> Outcome | None:
    """Return the outcome for a run with this status; None if the run is still to be cancelled.

    An unknown status counts as an end, as it does in the SDK (SDK 1.20.0, wrapper/polling.py).
    """
    if status in CANCELLABLE:
        return None
    if status in _CANCELLED:
        return "cancelled"
    return "in_review" if status == "NEEDS_REVIEW" else "finished"


def outcome_of_error(error: ExtendError, refusals: int) -> Outcome | None:
    """Return the outcome for a run that Extend did not cancel; None if the next list must tell its status.

    ``refusals`` is the number of refusals with this one. Raises ExtendProblemError if the error is not about the run.
    """
    if error.from_extend and error.status in (404, 410):
        return "gone"
    if error.from_extend and error.status in (400, 409, 422):
        return "refused" if refusals >= MAX_REFUSALS else None
    raise ExtendProblemError(str(error)) from None


class Counts:
    """The numbers of inputs in a scope, by what a cancellation does with them."""

    def __init__(self, queued: Mapping[str, int], in_transit: Mapping[str, int], rows: Mapping[str, int]) -> None:
        """Combine the inputs of chunks without an outcome, of chunks whose rows do not exist yet, and of rows.

        The first two are counted by the state of the chunk, and the last ones by status.
        """
        self.not_sent = queued.get("waiting", 0)
        self.calling = queued.get("sending", 0)
        self.in_doubt = queued.get("in_doubt", 0) + queued.get("held", 0)
        self.at_extend = in_transit.get("submitted", 0) + sum(rows.get(status, 0) for status in AT_EXTEND)
        self.in_review = rows.get("NEEDS_REVIEW", 0)
        ended = in_transit.get("refused", 0) + in_transit.get("cancelled", 0)
        self.settled = ended + sum(rows.get(s, 0) for s in ("PROCESSED", "FAILED", "CANCELLED", "REJECTED", "REFUSED"))

    @property
    def cancellable(self) -> int:
        """The number of inputs that a cancellation can still affect."""
        return self.not_sent + self.calling + self.in_doubt + self.at_extend

    def plain(self) -> dict[str, Any]:
        """Return the numbers by name."""
        names = ("not_sent", "calling", "in_doubt", "at_extend", "in_review", "settled")
        return {name: getattr(self, name) for name in names}
