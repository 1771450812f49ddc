"""End a long-running command on SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from everyrun.serve import stop_on_signals

T = TypeVar("T")


class StoppedError(Exception):
    """A signal ended the work before it was done."""


async def until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns. On SIGINT or SIGTERM, cancel the work, wait for its end and raise StoppedError.

    SIGINT has this effect even if this process was started with SIGINT ignored, as shells start background commands.
    """
    stop = stop_on_signals()
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return working.result()
    working.cancel(stop.signal)
    try:
        return await working
    except asyncio.CancelledError:
        raise StoppedError from None
