"""Decide what follows from the outcome of a request to a receiver: done, retry later, or give up. Pure.

Two waits work together. Each delivery waits longer after each of its own failures. And each receiver that fails again
and again gets only one request at a time, with a pause after each, until one succeeds (its *circuit* is open then). So
a dead receiver costs few requests, however many deliveries wait for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from msgspec import Struct

#: A receiver's circuit opens after this many failures in a row.
OPENS_AFTER = 5
#: Maximum pause in seconds between two requests to a receiver whose circuit is open. A receiver that comes back is
#: noticed within this time.
MAX_PAUSE = 30.0
#: Seconds that Everyrun waits at most because a receiver asked for it with Retry-After.
MAX_RETRY_AFTER = 3600.0
#: Maximum share of a wait that is added at random, so that deliveries that failed together are not retried together.
_JITTER = 0.25


class Outcome(Struct, frozen=True):
    """Describes the outcome of a request.

    ``status`` is the HTTP status, or None if there was no answer. ``answer`` holds the first characters of the body,
    and ``error`` says why there was no answer. ``retry_after`` is in seconds.
    """

    status: int | None = None
    answer: str = ""
    error: str = ""
    seconds: float = 0.0
    retry_after: float | None = None

    @property
    def accepted(self) -> bool:
        """True if the receiver accepted the request, with a status of 2xx. A redirect is not followed, so it fails."""
        return self.status is not None and 200 <= self.status < 300


class Next(Struct, frozen=True):
    """The new state of a delivery. If it is ``waiting``, it is due in ``seconds``."""

    state: Literal["delivered", "waiting", "given_up"]
    seconds: float = 0.0


def backoff(failures: int, first: float, most: float, chance: float) -> float:
    """Return the seconds to wait after ``failures`` failures in a row: ``first``, doubled each time, at most ``most``.

    ``chance`` is a random number from 0 to 1; it lengthens the wait by up to a quarter.
    """
    return min(first * 2.0 ** min(failures - 1, 40), most) * (1 + _JITTER * chance)


def next_state(
    outcome: Outcome, attempts: int, seconds_left: float, *, first: float, most: float, chance: float
) -> Next:
    """Return the new state of a delivery after its attempt number ``attempts``.

    The delivery is given up if its next attempt would begin after ``seconds_left`` seconds. It is retried whatever the
    status was, as Extend does (docs.extend.ai, webhooks/best-practices: any answer but 2xx is a failure).
    """
    if outcome.accepted:
        return Next("delivered")
    wait = max(backoff(attempts, first, most, chance), min(outcome.retry_after or 0.0, MAX_RETRY_AFTER))
    return Next("given_up") if wait > seconds_left else Next("waiting", wait)


def pause(failures: int, first: float, most: float, chance: float) -> float:
    """Return the seconds for which a receiver gets no request, or 0 while its circuit is closed.

    ``failures`` is the number of failures in a row. ``first`` and ``most`` are those of a delivery's waits, but a pause
    has at most MAX_PAUSE seconds.
    """
    if failures < OPENS_AFTER:
        return 0.0
    return backoff(failures - OPENS_AFTER + 1, first, min(most, MAX_PAUSE), chance)


def requests_at_once(failures: int, usual: int) -> int:
    """Return how many requests a receiver may get at the same time."""
    return usual if failures < OPENS_AFTER else 1


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date; None if it is missing or malformed."""
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdecimal():
        return float(value.strip()) if len(value.strip()) < 10 else MAX_RETRY_AFTER
    try:
        moment: datetime = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)
