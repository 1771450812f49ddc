"""When a batch is polled next. Pure but for the jitter handed in."""

from __future__ import annotations

import msgspec

_SLOWEST = 4.0


class Turn(msgspec.Struct, frozen=True):
    """What is remembered of a batch between polls: when it is due (seconds), how slowed, how many were settled."""

    due: float
    slowed: float = 1.0
    settled: int = 0


def after_poll(turn: Turn, *, now: float, every: float, settled: int, found: int, jitter: float) -> Turn:
    """The next turn after a poll that fetched ``found`` runs.

    Where webhooks bring what there is (more is settled than before, and the poll found nothing), the wait doubles, up
    to four times ``every``; else it falls back. ``jitter`` in [0, 1) makes the wait up to a fifth longer, never
    shorter than ``every``.
    """
    arriving = found == 0 and settled > turn.settled
    slowed = min(turn.slowed * 2, _SLOWEST) if arriving else 1.0
    return Turn(now + every * slowed * (1 + jitter / 5), slowed, settled)


def after_failure(turn: Turn, *, now: float, every: float, jitter: float) -> Turn:
    """The next turn after a poll that failed: as after any poll."""
    return Turn(now + every * (1 + jitter / 5), 1.0, turn.settled)
