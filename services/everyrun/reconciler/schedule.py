"""Decide when to poll a batch next, and when to sweep a workflow next. Jitter and time are arguments. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

import msgspec

#: While webhooks arrive, polls are hardly needed. The wait between polls of a batch then grows, by at most this factor.
_SLOWEST = 8.0
#: Minimum wait between polls of a batch: the first number times the batch's age, but at most the second number, in
#: seconds.
_AGE_SHARE, _AGE_MOST = 1 / 20, 3600.0
#: After a sweep comes a pause. Its length is the duration of the sweep times the first number, or times the second
#: number while a call is in doubt. The second number is smaller, because inputs then wait for complete sweeps.
_REST, _REST_IN_DOUBT = 5.0, 1.0
#: Minimum wait between polls of a batch that waits only for a person: the first number times the batch's age, but at
#: most the second number, in seconds.
_RESTING_SHARE, _RESTING_MOST = 1 / 2, 86_400.0
#: Longest time, in seconds, between two sweeps that list runs back to the start of a call that only a person can
#: settle.
_LOOK_BACK_MOST = 86_400.0


class Turn(msgspec.Struct, frozen=True):
    """The next poll of a batch.

    ``due`` is the time of the poll (seconds, by a monotonic clock). ``slowed`` is the factor by which the wait for that
    poll was made longer than usual. ``settled`` is how many inputs of the batch were settled at the last poll.
    """

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
    """Return the next turn of a batch after a poll that fetched ``found`` runs. The batch was sent ``age`` seconds ago.

    If webhooks arrive (more inputs are ``settled`` than at the last poll, and the poll found no run), the wait doubles,
    up to eight times ``every``. Otherwise the wait is ``every`` again.

    The wait is at least a twentieth of the batch's age or an hour, whichever is shorter, because the last runs of an
    old batch may need days. If the batch is ``resting`` (every run waits for a person, or was deleted), the wait is at
    least half the batch's age or a day, whichever is shorter. If such a batch changes earlier, the sweep of its
    workflow sees the change.

    ``jitter`` in [0, 1) makes the wait up to a fifth longer, so that batches are not all polled at the same moment.
    """
    arriving = found == 0 and settled > turn.settled
    slowed = min(turn.slowed * 2, _SLOWEST) if arriving else 1.0
    wait = max(every * slowed, min(age * _AGE_SHARE, _AGE_MOST))
    if resting:
        wait = max(wait, min(age * _RESTING_SHARE, _RESTING_MOST))
    return Turn(now + wait * (1 + jitter / 5), slowed, settled)


def after_failure(turn: Turn, *, now: float, every: float, jitter: float) -> Turn:
    """Return the next turn after a failed poll: after ``every`` seconds, whatever the age of the batch is."""
    return Turn(now + every * (1 + jitter / 5), 1.0, turn.settled)


def first_turn(*, now: float, every: float, polled_ago: float | None, due_in: float | None = None) -> Turn:
    """Return the first turn of a batch in this process.

    If another process polled the batch ``polled_ago`` seconds ago, the batch is due ``every`` seconds after that poll.
    Otherwise it is due at once. A batch that waits for a person is due in ``due_in`` seconds instead.
    """
    wait = 0.0 if polled_ago is None else every - polled_ago
    return Turn(now + max(wait if due_in is None else due_in, 0.0))


class Turns:
    """The turns of all open batches. A heap finds the batches that are due without looking at the others."""

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
        """Forget all batches except these."""
        self._turns = {batch_id: turn for batch_id, turn in self._turns.items() if batch_id in batch_ids}
        self._heap = [(turn.due, batch_id) for batch_id, turn in self._turns.items()]
        heapq.heapify(self._heap)

    def due(self, now: float) -> Iterator[str]:
        """Yield the id of each batch that is due. A batch that was yielded is not due again until its turn is set."""
        taken = set()
        while self._heap and self._heap[0][0] <= now:
            due, batch_id = heapq.heappop(self._heap)
            # Skip an entry of the heap if the turn of its batch has been replaced since.
            if batch_id in self._turns and self._turns[batch_id].due == due and batch_id not in taken:
                taken.add(batch_id)
                yield batch_id


def look_back_due(held_for: float, since_last: float, every: float) -> bool:
    """Return True if the next sweep must list runs back to the start of a call that only a person can settle.

    All arguments are in seconds: ``held_for`` is how long the call has been in doubt, ``since_last`` how long ago a
    sweep last went back that far, and ``every`` the pause between two sweeps. The wait is as long as the call had been
    in doubt at the last such sweep. So the wait doubles each time. It is at least ``every``, and at most a day.
    """
    return since_last >= max(every, min(held_for - since_last, _LOOK_BACK_MOST))


def sweep_wait(*, in_doubt: bool, every: float, in_doubt_every: float, took: float) -> float:
    """Return the seconds from the start of a sweep that took ``took`` seconds to the start of the next one.

    The pause after each sweep leaves requests to others. Sweeps take at most a sixth of the time; while a call is
    in doubt, at most half of the time. So they take at most the same share of the rate limit.
    """
    if in_doubt:
        return max(in_doubt_every, took * (1 + _REST_IN_DOUBT))
    return max(every, took * (1 + _REST))
