"""Decide when to poll a batch next, and when to sweep a workflow. Pure: jitter and time are arguments."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

import msgspec

#: While webhooks arrive, the wait between polls of a batch grows up to this many times.
_SLOWEST = 8.0
#: An old batch waits this share of its age, up to a maximum in seconds.
_AGE_SHARE, _AGE_MOST = 1 / 20, 3600.0
#: After a sweep comes a pause of this many times its duration. It is shorter in doubt, because inputs wait for sweeps.
_REST, _REST_IN_DOUBT = 5.0, 1.0
#: A batch that waits only for a person waits this share of its age, up to a maximum in seconds.
_RESTING_SHARE, _RESTING_MOST = 1 / 2, 86_400.0
#: Longest time between sweeps that look back to a call that only a person can settle, in seconds.
_LOOK_BACK_MOST = 86_400.0


class Turn(msgspec.Struct, frozen=True):
    """The next poll of a batch: when it is due (seconds), the factor of its wait, and how many runs were settled."""

    due: float
    slowed: float = 1.0
    settled: int = 0


def after_poll(
    turn: Turn,
    *,
    now: float,
    age: float,
    every: float,
    settled: int,
    found: int,
    jitter: float,
    resting: bool = False,
) -> Turn:
    """Return the next turn after a poll that fetched ``found`` runs of a batch that was sent ``age`` seconds ago.

    If webhooks arrive (more runs are settled than before, and the poll found none), the wait doubles, up to eight
    times ``every``. If the poll found a run, or nothing changed at all, the wait is ``every`` again.

    An old batch, whose last runs may wait days for a person, waits a twentieth of its age, up to an hour; until then
    the sweep of its workflow sees its changes. A batch that is ``resting`` (every run waits for a person, or was
    deleted) waits half its age, up to a day. ``jitter`` in [0, 1) makes every wait up to a fifth longer.
    """
    arriving = found == 0 and settled > turn.settled
    slowed = min(turn.slowed * 2, _SLOWEST) if arriving else 1.0
    wait = max(every * slowed, min(age * _AGE_SHARE, _AGE_MOST))
    if resting:
        wait = max(wait, min(age * _RESTING_SHARE, _RESTING_MOST))
    return Turn(now + wait * (1 + jitter / 5), slowed, settled)


def after_failure(turn: Turn, *, now: float, every: float, jitter: float) -> Turn:
    """Return the next turn after a failed poll. The age of the batch does not matter."""
    return Turn(now + every * (1 + jitter / 5), 1.0, turn.settled)


def first_turn(*, now: float, every: float, polled_ago: float | None, due_in: float | None = None) -> Turn:
    """Return the first turn of a batch in this process: at once, or ``every`` seconds after another process's poll.

    A batch that waits for a person is due in ``due_in`` seconds.
    """
    wait = 0.0 if polled_ago is None else every - polled_ago
    return Turn(now + max(wait if due_in is None else due_in, 0.0))


class Turns:
    """The turns of all open batches, in a heap: finding those that are due does not touch the others."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}
        self._heap: list[tuple[float, str]] = []

    def __contains__(self, batch_id: str) -> bool:
        return batch_id in self._turns

    def __getitem__(self, batch_id: str) -> Turn:
        return self._turns[batch_id]

    def set(self, batch_id: str, turn: Turn) -> None:
        """Set or replace the turn of a batch."""
        self._turns[batch_id] = turn
        heapq.heappush(self._heap, (turn.due, batch_id))

    def forget(self, batch_id: str) -> None:
        """Forget a batch, if it is known."""
        self._turns.pop(batch_id, None)

    def keep(self, batch_ids: Collection[str]) -> None:
        """Forget all other batches."""
        self._turns = {batch_id: turn for batch_id, turn in self._turns.items() if batch_id in batch_ids}
        self._heap = [(turn.due, batch_id) for batch_id, turn in self._turns.items()]
        heapq.heapify(self._heap)

    def due(self, now: float) -> Iterator[str]:
        """Yield each batch that is due, once. It is not due again until its turn is set."""
        taken = set()
        while self._heap and self._heap[0][0] <= now:
            due, batch_id = heapq.heappop(self._heap)
            # Skip an entry whose turn was replaced since.
            if batch_id in self._turns and self._turns[batch_id].due == due and batch_id not in taken:
                taken.add(batch_id)
                yield batch_id


def look_back_wait(held_for: float, every: float) -> float:
    """Return the seconds between two sweeps that look back to a call that only a person can settle.

    It is as long as the call has been in doubt (``held_for``), so the wait doubles: at least ``every``, at most a day.
    """
    return max(every, min(held_for, _LOOK_BACK_MOST))


def sweep_wait(*, in_doubt: bool, every: float, in_doubt_every: float, took: float) -> float:
    """Return the seconds from the start of a sweep that took ``took`` seconds to the start of the next one.

    Sweeps use at most a sixth of the time, and so of the rate limit, or half of it while a call is in doubt.
    """
    if in_doubt:
        return max(in_doubt_every, took * (1 + _REST_IN_DOUBT))
    return max(every, took * (1 + _REST))
