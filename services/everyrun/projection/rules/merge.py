"""Merge any number of observations of a run, in any order, into its current state. Pure.

``merge`` is commutative, associative and idempotent (a join-semilattice). Of two observations, the one with the greater
*order* wins. The order is text, so Postgres and Python compare it alike.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

#: Final statuses of a run (SDK 1.20.0, types/workflow_run_status.py). NEEDS_REVIEW is not final: a person approves or
#: rejects the run, or it starts again.
FINAL = frozenset({"PROCESSED", "FAILED", "CANCELLED", "REJECTED"})

#: Statuses in which an input is settled.
SETTLED = FINAL | {"REFUSED"}

_RANK = {"PENDING": 1, "PROCESSING": 2, "CANCELLING": 4, "NEEDS_REVIEW": 5}
_RANK_UNKNOWN = 3
_RANK_FINAL = 6


AttemptKey = tuple[str, int]
"""An attempt: (chunk, number)."""


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
    """Return an RFC 3339 time in UTC; None if the text is missing or not a time."""
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
    """Return when the run reached its state according to Extend: the later of its end and its review."""
    moments = [m for m in (instant(end_time), instant(reviewed_at)) if m is not None]
    return max(moments, default=None)


def order_of(
    *, status: str, own: datetime | None, truncated: bool, polled: bool, requested_at: datetime, digest: str
) -> str:
    """Return the order of an observation among all observations of its run, as text that sorts.

    Compares, in this order: the rank of the status (final is greatest), the run's own end or review time, complete over
    truncated, poll over webhook, the later request among polls, and a hash of the content. A webhook's time of arrival
    does not count, so a repeated delivery changes nothing.
    """
    rank = _RANK_FINAL if status in FINAL else _RANK.get(status, _RANK_UNKNOWN)
    moment = _sortable(own) if own else _NEVER
    requested = _sortable(requested_at) if polled else _NEVER
    return f"{rank}{moment}{'0' if truncated else '1'}{'1' if polled else '0'}{requested}{digest}"


#: Ends the order of a state whose content was dropped. It sorts right after the order of that state.
_TRIMMED = "~"


def trimmed(order: str) -> str:
    """Return the order of this state after its content was dropped."""
    return order if is_trimmed(order) else order + _TRIMMED


def is_trimmed(order: str) -> bool:
    """Return True if the content of this state was dropped."""
    return order.endswith(_TRIMMED)


_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_NEVER = "0" * 15


def _sortable(moment: datetime) -> str:
    # Microseconds since year 1 in hexadecimal: 15 digits reach past year 9999.
    since = moment - _EPOCH
    return f"{(since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds:015x}"


def merge(one: Run, other: Run) -> Run:
    """Return the current state from two observations of the same run.

    Of two equal states, the first seen wins. A batch or an input that only one of them names is kept: Extend may leave
    out a run's ``batchId`` (SDK 1.20.0, types/workflow_run.py), and metadata may be changed at Extend.
    """
    if one.order == other.order:
        winner = one if (one.observed_at, one.run) <= (other.observed_at, other.run) else other
    else:
        winner = one if one.order > other.order else other
    binding, batch_id = _one(one.binding, other.binding), _one(one.batch_id, other.batch_id)
    if binding == winner.binding and batch_id == winner.batch_id:
        return winner
    return replace(winner, binding=binding, batch_id=batch_id)


_Known = TypeVar("_Known", Binding, str)


def _one(one: _Known | None, other: _Known | None) -> _Known | None:
    if one is None or other is None:
        return one or other
    return min(one, other)


#: The parts of an order that ``order_of`` makes: the length of each, and what a greater one means.
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
