"""A Get of one run, as a record for the log."""

from __future__ import annotations

import hashlib
import time

from everyrun.extend.client import Extend, ExtendError
from everyrun.log.cloudevents import Record, timestamp
from everyrun.log.observation import NotARunError, observed, read_head

SERVICE = "/everyrun/reconciler"


def poll_record(run: bytes, run_id: str, asked_at: str) -> Record:
    """The observation a Get made at ``asked_at`` (RFC 3339). Raises NotARunError, also where it is another run."""
    head = read_head(run)
    if head.id != run_id:
        raise NotARunError(f"asked for {run_id}, was given {head.id[:80]}")
    id = f"poll/{run_id}/{asked_at}/{hashlib.sha256(run).hexdigest()[:16]}"
    return observed(run, head, source="poll", id=id, time=asked_at, service=SERVICE)


async def ask(extend: Extend, run_id: str, within: float = 30.0, tries: int = 3) -> Record:
    """Get the run; its observation. An answer that is no such run is asked for again. Raises ExtendError."""
    for attempt in range(1, tries + 1):
        asked_at = timestamp(time.time())
        run = await extend.get_run(run_id, within)
        try:
            return poll_record(run, run_id, asked_at)
        except NotARunError as error:
            if attempt == tries:
                raise ExtendError(200, "UNREADABLE", str(error)) from None
    raise AssertionError("unreachable")
