"""When a batch is polled next, and when a workflow is swept. Pure but for the jitter handed in."""

from __future__ import annotations

import msgspec

#: Polls of a batch whose webhooks come are up to this many times rarer.
_SLOWEST = 8.0
#: An old batch waits this part of its age, and no longer than so many seconds.
_AGE_SHARE, _AGE_MOST = 1 / 20, 3600.0
#: A sweep that took long is followed by a wait of this many times as long; while a call is in doubt inputs wait for it.
_REST, _REST_IN_DOUBT = 5.0, 1.0


class Turn(msgspec.Struct, frozen=True):
    """What is remembered of a batch between polls: when it is due (seconds), how slowed, how many were settled."""

    due: float
    slowed: float = 1.0
    settled: int = 0


def after_poll(turn: Turn, *, now: float, age: float, every: float, settled: int, found: int, jitter: float) -> Turn:
    """The next turn after a poll that fetched ``found`` runs of a batch that was sent ``age`` seconds ago.

    Where webhooks bring what there is (more is settled than before, and the poll found nothing), the wait doubles, up
    to eight times ``every``; a poll that found something, or a batch of which nothing is heard, takes it back to
    ``every``. An old batch, whose last runs may wait days for a person, waits a twentieth of its age, at most an hour:
    what changes in it meanwhile the sweep of its workflow sees. ``jitter`` in [0, 1) makes any wait up to a fifth
    longer.
    """
    arriving = found == 0 and settled > turn.settled
    slowed = min(turn.slowed * 2, _SLOWEST) if arriving else 1.0
    wait = max(every * slowed, min(age * _AGE_SHARE, _AGE_MOST))
    return Turn(now + wait * (1 + jitter / 5), slowed, settled)


def after_failure(turn: Turn, *, now: float, every: float, jitter: float) -> Turn:
    """The next turn after a poll that failed, however old the batch is."""
    return Turn(now + every * (1 + jitter / 5), 1.0, turn.settled)


def first_turn(*, now: float, every: float, polled_ago: float | None) -> Turn:
    """The turn of a batch this process has not polled: at once, or ``every`` after another one's poll."""
    return Turn(now if polled_ago is None else now + max(every - polled_ago, 0.0))


def sweep_wait(*, in_doubt: bool, every: float, in_doubt_every: float, took: float) -> float:
    """Seconds from the start of a sweep that ``took`` so long to the start of the next one.

    Sweeps take at most a sixth of the time, and so of the budget, whatever the settings ask for; in doubt, a half.
    """
    if in_doubt:
        return max(in_doubt_every, took * (1 + _REST_IN_DOUBT))
    return max(every, took * (1 + _REST))
