"""Memory of processes that carry many records: cycles looked for seldom, what was freed given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc

#: Objects made, less those freed, before the youngest are looked through. The default of 700 has the collector walk
#: through a poll's records again and again, of which none is in a cycle: reference counts free them.
_YOUNG = 100_000
#: Seconds between two times of giving back.
_EVERY = 20.0


def collect_seldom() -> None:
    """From now on leave alone what is there already, and look for cycles among the rest seldom."""
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 100)


async def give_back() -> None:
    """Every twenty seconds, for ever, give back to the system what the C library holds of freed memory.

    glibc gives back only what lies above everything still in use: after one large poll a process stays as large as
    it ever was. A process that looks for cycles seldom looks for them now: the oldest it would never look through.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(_EVERY)
        if gc.get_threshold()[0] == _YOUNG:
            gc.collect()
        if trim is not None:
            trim(0)
