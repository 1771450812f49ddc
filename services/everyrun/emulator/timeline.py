"""Keep runs in the order of their last change, so that the cost of a page does not grow with the number of runs."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from everyrun.emulator.runs import Run


class Timeline:
    """Every run in the order of its last change, ``updated_at``.

    This class sets ``updated_at``. Each value is greater than all earlier ones, so no two runs have the same value. A
    run that changes gets a new entry; its old entry is skipped from then on, and removed later.
    """

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self._times = array("d")
        self._numbers = array("L")
        self._fill(runs)

    def _fill(self, runs: Iterable[Run]) -> None:
        ordered = sorted(runs, key=lambda run: run.updated_at)
        self._times = array("d", (run.updated_at for run in ordered))
        self._numbers = array("L", (run.number for run in ordered))

    def touch(self, run: Run) -> None:
        """Record that the run changed now."""
        last = self._times[-1] if self._times else 0.0
        run.updated_at = max(time.time(), last + 1e-6)
        self._times.append(run.updated_at)
        self._numbers.append(run.number)
        if len(self._times) > 3 * len(self._runs) + 10_000:
            self._fill(self._runs)

    def newest_first(self, before: float | None) -> Iterator[Run]:
        """Yield the runs that changed before a time (Unix seconds), last changed first. None means all runs."""
        end = len(self._times) if before is None else bisect_left(self._times, before)
        return self._current(range(end - 1, -1, -1))

    def oldest_first(self, after: float | None) -> Iterator[Run]:
        """Yield the runs that changed after a time (Unix seconds), first changed first. None means all runs."""
        start = 0 if after is None else bisect_right(self._times, after)
        return self._current(range(start, len(self._times)))

    def _current(self, indexes: Iterable[int]) -> Iterator[Run]:
        for index in indexes:
            run = self._runs[self._numbers[index]]
            if run.updated_at == self._times[index]:
                yield run
