"""Reduce the cost of memory in processes that handle many records."""

from __future__ import annotations

import asyncio
import ctypes
import gc

#: New objects after which the garbage collector looks through the youngest generation. With the default of 700 it would
#: walk through the records of a poll many times, although none is in a cycle and reference counts free them.
_YOUNG = 100_000
#: Seconds between two releases of memory.
_EVERY = 20.0


def reduce_garbage_collection() -> None:
    """Exclude all present objects from garbage collection, and look for cycles among new ones rarely."""
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 100)


async def keep_releasing_memory() -> None:
    """Every twenty seconds, for ever, return freed memory from the C library to the system.

    glibc alone returns only memory above everything in use, so a process would stay as large as its largest poll. After
    :func:`reduce_garbage_collection`, also collect cycles, because the oldest generation would never be collected.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(_EVERY)
        if gc.get_threshold()[0] == _YOUNG:
            gc.collect()
        if trim is not None:
            trim(0)
