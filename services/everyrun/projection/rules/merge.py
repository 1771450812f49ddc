"""``merge``: what is known of one run, from any number of observations of it in any order.

A join-semilattice: commutative, associative and idempotent. Of two observations the one with the greater *order*
stands; the order is text, so that Postgres and Python compare it alike.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

#: Statuses that a run ends in (SDK 1.20.0, types/workflow_run_status.py). NEEDS_REVIEW is not one of them: a person
#: approves or rejects, or the run starts again.
FINAL = frozenset({"PROCESSED", "FAILED", "CANCELLED", "REJECTED"})

#: Statuses of an input after which nothing more is expected.
SETTLED = FINAL | {"REFUSED"}

_RANK = {"PENDING": 1, "PROCESSING": 2, "CANCELLING": 4, "NEEDS_REVIEW": 5}
_RANK_UNKNOWN = 3
_RANK_FINAL = 6


AttemptKey = tuple[str, int]
"""An attempt: (chunk, number)."""


class Binding(Struct, frozen=True, order=True):
    """What the reserved metadata key said: the input and the attempt that a run belongs to."""

    input_id: str
    chunk: str
    attempt: int
    installation: str


class Run(Struct, frozen=True):
    """What is known of one run. ``order`` ranks this state among the others of the same run; see :func:`order_of`."""

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
        """Whether nothing more is expected of the run."""
        return self.status in FINAL


def instant(text: str | None) -> datetime | None:
    """An RFC 3339 time; None where there is none or it is not one (kept in the run as it is)."""
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
    """When the run came to its state by its own account: the later of its end and its review."""
    moments = [m for m in (instant(end_time), instant(reviewed_at)) if m is not None]
    return max(moments, default=None)


def order_of(
    *, status: str, own: datetime | None, truncated: bool, polled: bool, asked_at: datetime, digest: str
) -> str:
    """The place of an observation among all of its run, as text that sorts.

    Rank of the status first (final last), then the run's own end or review time, then whole over truncated, poll over
    webhook, the later asked-at of polls, and a hash of the content. A webhook's time of arrival is left out, so that
    a repeated delivery changes nothing.
    """
    rank = _RANK_FINAL if status in FINAL else _RANK.get(status, _RANK_UNKNOWN)
    moment = _sortable(own) if own else _NEVER
    asked = _sortable(asked_at) if polled else _NEVER
    return f"{rank}{moment}{'0' if truncated else '1'}{'1' if polled else '0'}{asked}{digest}"


#: Ends the order of a state whose content was dropped: it stands before that very state, and after none else.
_TRIMMED = "~"


def trimmed(order: str) -> str:
    """Return the order of a state without its content."""
    return order if is_trimmed(order) else order + _TRIMMED


def is_trimmed(order: str) -> bool:
    """Return whether the state has lost its content."""
    return order.endswith(_TRIMMED)


_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
_NEVER = "0" * 15


def _sortable(moment: datetime) -> str:
    # Microseconds since year 1 in hexadecimal: 15 digits reach past year 9999.
    since = moment - _EPOCH
    return f"{(since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds:015x}"


def merge(one: Run, other: Run) -> Run:
    """The standing state of two of the same run.

    Of equal content the first seen stands. What one of them knew of the run's batch and input is kept: Extend may leave
    out a run's ``batchId`` (SDK 1.20.0, types/workflow_run.py), and metadata may be changed upstream.
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


#: The parts of an order, as ``order_of`` puts them together, and what the greater one of each means.
_PARTS = (
    (1, "its status is further on"),
    (15, "its own time is later"),
    (1, "it is whole, the other truncated"),
    (1, "a poll goes before a webhook"),
    (15, "it was asked later"),
)


def why_greater(greater: str, lesser: str) -> str | None:
    """Why, of two orders that ``order_of`` made, the greater stands, in words; None where they are equal."""
    if greater == lesser:
        return None
    if greater == trimmed(lesser):
        return "its content was dropped, the run not being ours"
    start = 0
    for length, reason in _PARTS:
        if greater[start : start + length] != lesser[start : start + length]:
            return reason
        start += length
    return "of two that tell different things at one moment a hash decides"
