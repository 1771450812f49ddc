"""Show a submission's progress: counts by state, rate and time left."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table

#: Statuses of inputs that are settled, but not PROCESSED.
FAILED = ("FAILED", "CANCELLED", "REJECTED", "REFUSED")
_UNSENT = ("WAITING", "SENDING", "IN_DOUBT")
#: The shown rate is an average over this many seconds.
_OVER = 10.0


def summary(report: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of inputs in a report, grouped as the progress display shows them."""
    by_status = report["by_status"]
    failed = sum(by_status.get(status, 0) for status in FAILED)
    done = by_status.get("PROCESSED", 0)
    review = by_status.get("NEEDS_REVIEW", 0)
    unsent = sum(by_status.get(status, 0) for status in _UNSENT)
    return {
        "sent": report["expected"] - unsent,
        "running": report["expected"] - unsent - done - failed - review,
        "waiting for review": review,
        "done": done,
        "failed": failed,
        "open": report["open"],
    }


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are at least two: "90 s", "3 min", "5 h", "4 days"."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class JobProgress:
    """Show the progress of a submission, given its reports one after another."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._began = time.monotonic()

    def table(self) -> Table:
        """Return an empty table, for the time before the first report."""
        return Table.grid()

    def rate(self, settled: int, now: float) -> float:
        """Return the number of inputs that settled per second, as an average over the last _OVER seconds."""
        self._seen.append((now, settled))
        while len(self._seen) > 2 and now - self._seen[0][0] > _OVER:
            self._seen.popleft()
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def update(self, report: dict[str, Any]) -> Table:
        """Return the table that shows a report."""
        now = time.monotonic()
        rate = self.rate(report["settled"], now)
        seconds = (report.get("estimate") or {}).get("seconds_left")
        left = "-" if seconds is None else duration(seconds)
        table = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=report["expected"], completed=report["settled"], width=30)
        table.add_row(bar, f"{report['settled']}/{report['expected']} settled", f"{rate:.0f}/s", f"left {left}")
        grid = Table.grid()
        grid.add_row(table)
        grid.add_row(f"{_parts(report)}  after {now - self._began:.0f} s")
        return grid

    def line(self, report: dict[str, Any]) -> str:
        """Return a report as one line, for output that does not go to a terminal."""
        return f"{report['settled']}/{report['expected']} settled: {_parts(report)}"


def _parts(report: dict[str, Any]) -> str:
    shown = {name: number for name, number in summary(report).items() if number or name != "waiting for review"}
    return "  ".join(f"{name} {number}" for name, number in shown.items())
