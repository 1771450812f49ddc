"""Kill this process with SIGKILL at a named point, to test what a crash there does. Never use this in production.

``EVERYRUN_FAILPOINTS`` lists points, separated by commas. A process that reaches a listed point makes the file
``failpoints/POINT`` in ``EVERYRUN_DATA_DIR``, and then kills itself. If the file exists already, the process passes the
point. So each point kills only once, and the restarted process continues. A test disarms a point by making the file,
and arms the point again by removing the file.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "EVERYRUN_FAILPOINTS"

#: Every point, in the order in which an input passes them. The name of a point says in which part of the code it is,
#: and whether it is before or after a step of that part.
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
    "cancel.before_produce",
    "cancel.before_commit",
    "cancel.after_commit",
    "cancel.after_produce",
    "cancel.after_call",
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
    "retry.before_commit",
    "retry.after_commit",
    "retry.before_produce",
    "retry.after_produce",
    "planner.before_commit",
    "planner.after_commit",
    "sender.after_claim",
    "sender.after_send",
    "sender.after_store",
)

_armed = frozenset(filter(None, os.environ.get(VARIABLE, "").split(",")))
if unknown := _armed.difference(POINTS):
    raise SystemExit(f"{VARIABLE} names unknown points: {', '.join(sorted(unknown))}")


def done(data_dir: Path, point: str) -> Path:
    """Return the path of the file which records that a point has killed a process and must not kill again."""
    return data_dir / "failpoints" / point


def hit(point: str) -> None:
    """Kill this process if EVERYRUN_FAILPOINTS lists the point and the point has not killed a process yet."""
    if point in _armed:
        _kill(done(Path(os.environ.get("EVERYRUN_DATA_DIR", ".everyrun")), point))


def _kill(mark: Path) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
