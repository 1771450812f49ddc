"""When a batch is polled next, and when a workflow is swept. Pure but for the jitter handed in."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

import msgspec

#: Polls of a batch whose webhooks come are up to this many times rarer.
_SLOWEST = 8.0
#: An old batch waits this part of its age, and no longer than so many seconds.
_AGE_SHARE, _AGE_MOST = 1 / 20, 3600.0
#: A sweep that took long is followed by a wait of this many times as long; while a call is in doubt inputs wait for it.
_REST, _REST_IN_DOUBT = 5.0, 1.0
#: A batch that only waits for a person waits this part of its age; and no longer than so many seconds.
_RESTING_SHARE, _RESTING_MOST = 1 / 2, 86_400.0
#: A call that only a person can settle is looked back for this often at least, in seconds.
_LOOK_BACK_MOST = 86_400.0


class Turn(msgspec.Struct, frozen=True):
    """What is remembered of a batch between polls: when it is due (seconds), how slowed, how many were settled."""

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
    """The next turn after a poll that fetched ``found`` runs of a batch that was sent ``age`` seconds ago.

    Where webhooks bring what there is (more is settled than before, and the poll found nothing), the wait doubles, up
    to eight times ``every``; a poll that found something, or a batch of which nothing is heard, takes it back to
    ``every``. An old batch, whose last runs may wait days for a person, waits a twentieth of its age, at most an hour:
    what changes in it meanwhile the sweep of its workflow sees. ``jitter`` in [0, 1) makes any wait up to a fifth
    longer. A batch that is ``resting`` (all its runs wait for a person, or are gone) waits half of its age, at most a
    day.
    """
    arriving = found == 0 and settled > turn.settled
    slowed = min(turn.slowed * 2, _SLOWEST) if arriving else 1.0
    wait = max(every * slowed, min(age * _AGE_SHARE, _AGE_MOST))
    if resting:
        wait = max(wait, min(age * _RESTING_SHARE, _RESTING_MOST))
    return Turn(now + wait * (1 + jitter / 5), slowed, settled)


def after_failure(turn: Turn, *, now: float, every: float, jitter: float) -> Turn:
    """The next turn after a poll that failed, however old the batch is."""
    return Turn(now + every * (1 + jitter / 5), 1.0, turn.settled)


def first_turn(*, now: float, every: float, polled_ago: float | None, due_in: float | None = None) -> Turn:
    """The turn of a batch this process has not polled: at once, or ``every`` after another one's poll.

    One that waits for a person is due in ``due_in`` seconds.
    """
    wait = 0.0 if polled_ago is None else every - polled_ago
    return Turn(now + max(wait if due_in is None else due_in, 0.0))


class Turns:
    """The turns of all open batches; which are due costs nothing for those that are not."""

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
        """Yield each batch whose turn it is, once; it has its next turn when it is set again."""
        taken = set()
        while self._heap and self._heap[0][0] <= now:
            due, batch_id = heapq.heappop(self._heap)
            # An entry may be of a turn that was replaced since.
            if batch_id in self._turns and self._turns[batch_id].due == due and batch_id not in taken:
                taken.add(batch_id)
                yield batch_id


def look_back_wait(held_for: float, every: float) -> float:
    """Seconds between sweeps back to a call that only a person can settle, in doubt for ``held_for`` seconds so far.

    As long again as it has been, so the waits double; at least ``every``, at most a day.
    """
    return max(every, min(held_for, _LOOK_BACK_MOST))


def sweep_wait(*, in_doubt: bool, every: float, in_doubt_every: float, took: float) -> float:
    """Seconds from the start of a sweep that ``took`` so long to the start of the next one.

    Sweeps take at most a sixth of the time, and so of the budget, whatever the settings ask for; in doubt, a half.
    """
    if in_doubt:
        return max(in_doubt_every, took * (1 + _REST_IN_DOUBT))
    return max(every, took * (1 + _REST))
