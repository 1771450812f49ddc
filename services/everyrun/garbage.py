"""Garbage collection for processes that carry many records."""

from __future__ import annotations

import gc

#: Objects made, less those freed, before the youngest are looked through. The default of 700 has the collector walk
#: through a poll's records again and again, of which none is in a cycle: reference counts free them.
_YOUNG = 100_000


def collect_seldom() -> None:
    """From now on leave alone what is there already, and look for cycles among the rest seldom."""
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 100)
