"""Report the progress of long work to progress bars and jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from everyrun.log.reading import Partition

OnProgress = Callable[[int, int], None]
"""Called with the number of records that are done, and the total number of records."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


class RebuildProgress:
    """Counts the records that a rebuild has read and applied.

    ``before`` counts the records that earlier invocations of the rebuild applied; ``total`` counts those that this one
    has to apply.
    """

    def __init__(self) -> None:
        self.before = 0
        self.total = 0
        self.read = 0
        self.applied = 0
        self._began = time.monotonic()

    def expect(self, start: Mapping[Partition, int], end: Mapping[Partition, int]) -> None:
        """Add the records up to ``start`` to ``before``, and the records from ``start`` up to ``end`` to ``total``."""
        self.before += sum(min(start.get(partition, 0), offset) for partition, offset in end.items())
        self.total += sum(max(offset - start.get(partition, 0), 0) for partition, offset in end.items())

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Records applied per second."""
        return self.applied / max(self.seconds, 1e-6)

    @property
    def left(self) -> float | None:
        """Seconds left at the rate so far; None until the first record is applied."""
        return (self.total - self.applied) / self.rate if self.applied else None


OnRebuildProgress = Callable[[RebuildProgress], None]
"""Called several times a second with the progress so far."""
