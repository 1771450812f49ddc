"""Merge any number of observations of a run, in any order, into the run's current state. Pure.

``merge`` is commutative, associative and idempotent (a join-semilattice). Of two observations, the one with the greater
*order* wins (:func:`order_of`). The order is text, so that Postgres and Python compare it in the same way.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

#: Final statuses of a run (SDK 1.20.0, types/workflow_run_status.py). NEEDS_REVIEW is not final: after it, a person
#: approves or rejects the run, or the run starts again.
FINAL = frozenset({"PROCESSED", "FAILED", "CANCELLED", "REJECTED"})

#: Statuses in which an input is settled.
SETTLED = FINAL | {"REFUSED"}

_RANK = {"PENDING": 1, "PROCESSING": 2, "CANCELLING": 4, "NEEDS_REVIEW": 5}
_RANK_UNKNOWN = 3
_RANK_FINAL = 6


AttemptKey = tuple[str, int]
"""Identifies an attempt: (id of the chunk, number of the attempt)."""


class Binding(Struct, frozen=True, order=True):
    """The content of the reserved metadata key: the input and the attempt that a run belongs to."""

    input_id: str
    chunk: str
    attempt: int
    installation: str


class Run(Struct, frozen=True):
    """The state of a run. ``order`` ranks it among other states of the same run; see :func:`order_of`."""

    run_id: str
    batch_id: str | None
    binding: Binding | None
    status: str
    order: str
    observed_at: datetime
    settled_at: datetime | None
    source: str
    failure_reason: str | None
    failure_message: str | None
    credits: float | None
    metadata: bytes
    run: bytes

    @property
    def final(self) -> bool:
        """True if the status is final."""
        return self.status in FINAL


def instant(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time and return it in UTC; None if the text is missing or not a time."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return None


def own_time(end_time: str | None, reviewed_at: str | None) -> datetime | None:
    """Return the later of the run's end and its review, by Extend's clock; None if it has neither."""
    moments = [m for m in (instant(end_time), instant(reviewed_at)) if m is not None]
    return max(moments, default=None)


def order_of(
    *, status: str, own: datetime | None, truncated: bool, polled: bool, requested_at: datetime, digest: str
) -> str:
    """Return the order of an observation among all observations of its run, as text. The greatest order wins.

    Orders are compared by these parts, the most important first:

    1. the rank of the status; a final status has the greatest rank
    2. ``own``: the run's own time, which is that of its end or of its review
    3. whether the run is complete or truncated; complete wins
    4. whether it comes from a poll or a webhook; a poll wins
    5. for polls, the time of the request
    6. a hash of the content

    The time at which a webhook arrived is not compared, so a webhook that is delivered again changes nothing.
    """
    rank = _RANK_FINAL if status in FINAL else _RANK.get(status, _RANK_UNKNOWN)
    moment = _sortable(own) if own else _NEVER
    requested = _sortable(requested_at) if polled else _NEVER
    return f"{rank}{moment}{'0' if truncated else '1'}{'1' if polled else '0'}{requested}{digest}"


#: Appended to the order of a state when its content is dropped, so that the new order sorts right after the old one.
_TRIMMED = "~"


def trimmed(order: str) -> str:
    """Return the new order of a state whose content is dropped, given its old order."""
    return order if is_trimmed(order) else order + _TRIMMED


def is_trimmed(order: str) -> bool:
    """Return True if this is the order of a state whose content was dropped."""
    return order.endswith(_TRIMMED)


_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_NEVER = "0" * 15


def _sortable(moment: datetime) -> str:
    # Microseconds since year 1, in hexadecimal: 15 digits are enough for every time up to year 9999.
    since = moment - _EPOCH
    return f"{(since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds:015x}"


def merge(one: Run, other: Run) -> Run:
    """Return the current state from two observations of the same run.

    If both have the same order, the one that was seen first wins. If only one of them names a batch or an input, the
    result names it. Extend may leave out a run's ``batchId`` (SDK 1.20.0, types/workflow_run.py), and somebody may
    change the metadata at Extend.
    """
    if one.order == other.order:
        winner = one if (one.observed_at, one.run) <= (other.observed_at, other.run) else other
    else:
        winner = one if one.order > other.order else other
    binding, batch_id = _named(one.binding, other.binding), _named(one.batch_id, other.batch_id)
    if binding == winner.binding and batch_id == winner.batch_id:
        return winner
    return replace(winner, binding=binding, batch_id=batch_id)


_Known = TypeVar("_Known", Binding, str)


def _named(one: _Known | None, other: _Known | None) -> _Known | None:
    """Return the value that is not None, or None if both are None.

    If neither is None, return the smaller value, so that the order of arrival does not matter.
    """
    if one is None or other is None:
        return one or other
    return min(one, other)


#: The parts of the text that ``order_of`` returns: the characters of each part, and why a greater part wins.
_PARTS = (
    (1, "its status is further on"),
    (15, "its own time is later"),
    (1, "it is complete and the other is truncated"),
    (1, "a poll counts more than a webhook"),
    (15, "its request was later"),
)


def why_greater(greater: str, lesser: str) -> str | None:
    """Return in words why the greater of two orders wins; None if they are equal."""
    if greater == lesser:
        return None
    if greater == trimmed(lesser):
        return "its content was dropped, because it is a foreign run"
    start = 0
    for length, reason in _PARTS:
        if greater[start : start + length] != lesser[start : start + length]:
            return reason
        start += length
    return "a hash decides between different states of the same time"
