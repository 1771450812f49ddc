"""Estimate when a submission will be done, what delays it, and what it will cost. Pure.

The rate is that of the last minutes. Before the first results, the rate of the plan takes its place: a known rate of
Extend says more than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal, NamedTuple

from msgspec import Struct

from everyrun.waiting import Waiting

#: The rate is measured over this time.
RATE_OVER = timedelta(minutes=5)
#: A rate that was measured over a shorter time than this is not used.
_RATE_MIN = timedelta(seconds=2)
#: A pause that Extend asked for is reported if it still lasts at least this many seconds. A shorter one is the normal
#: wait for a turn in the request budget.
_PAUSE_MIN = 3.0
#: If more time is left than this (ten years, in minutes), no date is named.
_MINUTES_MAX = 60 * 24 * 3650.0
#: The reasons to wait for which only a person can move an input forward.
NEEDS_PERSON = ("workflow_paused", "submission_paused", "secrets_removed", "held", "queue_lost")
#: The reasons to wait (everyrun.waiting) that are a normal part of sending.
_NORMAL = ("unannounced", "queued", "calling", "in_transit")


class Sample(NamedTuple):
    """Counts the inputs of a submission that were settled at a time."""

    at: datetime
    settled: int


class Credits(Struct, frozen=True):
    """The cost of a submission at Extend.

    ``spent`` is the sum of the credits that Extend reported for the runs of settled batches, and ``inputs`` the number
    of inputs in these batches. ``projected`` is the expected sum for all inputs, or None before a batch has settled.
    """

    spent: float
    inputs: int
    projected: float | None


class Estimate(Struct, frozen=True):
    """The time at which the open inputs of a submission will be settled, and what delays them.

    Inputs that only a person can move forward do not count. ``seconds_left`` and ``done_at`` (RFC 3339) are None if
    there are no others, or if there were results before and none in the last minutes. ``basis`` says where the estimate
    comes from: ``rate`` (the results of the last minutes) or ``plan`` (the files per minute of the plan).
    ``settled_per_minute`` is the measured rate, or None if it is not known. ``stalls`` are texts that say what delays
    the submission.
    """

    seconds_left: float | None
    done_at: str | None
    basis: Literal["rate", "plan"] | None
    settled_per_minute: float | None
    plan_per_minute: float
    stalls: list[str]
    credits: Credits


def rate(samples: Iterable[Sample], now: datetime, settled: int) -> float | None:
    """Return the inputs settled per minute, measured over the last RATE_OVER; None if the time is too short to say.

    ``settled`` is the number at the time ``now``. Samples of later times are ignored. A number that decreases (retried
    inputs are open again; tables are being rebuilt) counts as no progress, never as negative progress.
    """
    line = [*sorted(sample for sample in samples if sample.at < now), Sample(now, settled)]
    start = now - RATE_OVER
    since = max(start, line[0].at)
    if now - since < _RATE_MIN:
        return None
    gained = 0.0
    for before, after in pairwise(line):
        if after.at > start:
            # Of a step that began earlier, only the share after the start counts.
            step = after.at - before.at
            share = (after.at - max(before.at, start)) / step if step else 1.0
            gained += max(after.settled - before.settled, 0) * share
    return gained / ((now - since) / timedelta(minutes=1))


def credits_of(spent: float, inputs: int, expected: int) -> Credits:
    """Return the credits of a submission with ``expected`` inputs. ``spent`` is the sum for ``inputs`` of them."""
    return Credits(round(spent, 6), inputs, round(spent / inputs * expected, 6) if inputs else None)


def stalls_of(waiting: Iterable[Waiting], needs_person: dict[str, int], extend_pause: float) -> list[str]:
    """Return a text for everything that delays a submission.

    ``extend_pause`` is the number of seconds for which Extend asked Everyrun to send no batch.
    """
    found = [f"{one.reason}: {one.inputs:,}" for one in waiting if one.waits_for not in _NORMAL]
    if number := needs_person.get("needs_review"):
        found.append(f"waiting for review: {number:,}")
    if number := needs_person.get("ambiguous_metadata"):
        found.append(f"waiting for a decision about ambiguous runs: {number:,}")
    if extend_pause >= _PAUSE_MIN:
        found.append(f"Extend asked us to wait {extend_pause:.0f} s")
    return found


def estimate(
    now: datetime,
    samples: Sequence[Sample],
    *,
    settled: int,
    remaining: int,
    ahead: int,
    plan_per_minute: float,
    stalls: list[str],
    credits: Credits,
) -> Estimate:
    """Estimate when the open inputs of a submission will be settled.

    ``remaining`` is the number of open inputs that settle without a person. ``ahead`` is the number of open inputs of
    other submissions, which Extend may process first. It counts only before the first results, because a measured rate
    already contains it. ``plan_per_minute`` must be positive.
    """
    measured = rate(samples, now, settled) if samples and remaining > 0 else None
    minutes: float | None = None
    basis: Literal["rate", "plan"] | None = None
    if remaining > 0 and measured:
        minutes, basis = remaining / measured, "rate"
    elif remaining > 0 and not settled:
        minutes, basis = (remaining + ahead) / plan_per_minute, "plan"
    done_at = None
    if minutes is not None and minutes < _MINUTES_MAX:
        done_at = (now + timedelta(minutes=minutes)).isoformat()
    return Estimate(
        seconds_left=None if minutes is None else round(minutes * 60, 1),
        done_at=done_at,
        basis=basis,
        settled_per_minute=None if measured is None else round(measured, 2),
        plan_per_minute=plan_per_minute,
        stalls=stalls,
        credits=credits,
    )
