"""Reduce the time for garbage collection, and the memory in use, in processes that handle many records."""

from __future__ import annotations

import asyncio
import ctypes
import gc

#: After this many new objects, the garbage collector looks for cycles in the youngest generation. With the much lower
#: default it would walk through the records of a poll many times and find no cycles, because the records are freed by
#: their reference counts.
_YOUNG = 100_000
#: Seconds between two releases of memory.
_EVERY = 20.0


def reduce_garbage_collection() -> None:
    """Exclude all present objects from garbage collection, and make it rarely look for cycles among new objects."""
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 100)


async def keep_releasing_memory() -> None:
    """Every twenty seconds, forever, make the C library return freed memory to the system.

    Without this, glibc returns only the memory above the highest address in use, so a process would stay as large as
    its largest poll made it. If :func:`reduce_garbage_collection` was called, also collect cycles, because with its
    settings the oldest generation would never be collected.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(_EVERY)
        if gc.get_threshold()[0] == _YOUNG:
            gc.collect()
        if trim is not None:
            trim(0)
