"""Points at which a process can be made to kill itself with -9: for tests only, never set in production.

``EVERYRUN_FAILPOINTS`` names points, comma separated. A process that comes to one of them kills itself, once: a file
``failpoints/POINT`` in ``EVERYRUN_DATA_DIR`` says that it was done, so the process started after it goes on. A test
that makes the file disarms the point, and arms it by taking the file away.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "EVERYRUN_FAILPOINTS"

#: Every point, in the order in which an input comes by. "Before" and "after" are of the step that is named.
POINTS = (
    "intake.before_commit",
    "intake.after_commit",
    "announcer.before_produce",
    "announcer.after_produce",
    "announcer.after_mark",
    "dispatcher.before_claim",
    "dispatcher.after_claim",
    "dispatcher.after_intent",
    "dispatcher.before_post",
    "dispatcher.after_post",
    "dispatcher.before_produce",
    "dispatcher.after_produce",
    "dispatcher.after_row",
    "adopt.before_produce",
    "adopt.after_produce",
    "adopt.after_row",
    "bridge.before_produce",
    "bridge.after_produce",
    "apply.before_offset",
    "apply.before_commit",
    "apply.after_commit",
    "processor.before_publish",
    "processor.before_ack",
    "processor.after_ack",
    "deliveries.before_produce",
    "deliveries.before_offset",
    "deliveries.after_offset",
    "polling.before_produce",
    "polling.after_produce",
)

_armed = frozenset(filter(None, os.environ.get(VARIABLE, "").split(",")))
if unknown := _armed.difference(POINTS):
    raise SystemExit(f"{VARIABLE} names no points of ours: {', '.join(sorted(unknown))}")


def done(data_dir: Path, point: str) -> Path:
    """The file that says that the point has killed its process."""
    return data_dir / "failpoints" / point


def hit(point: str) -> None:
    """Kill this process here, where the point is armed and has not done so yet; else nothing."""
    if point in _armed:
        _kill(done(Path(os.environ.get("EVERYRUN_DATA_DIR", ".everyrun")), point))


def _kill(mark: Path) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
