"""Make the ids of submissions."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_submission_id(now: float | None = None) -> str:
    """Return a new id: ``sub_`` and 26 characters. The first ten encode the time, so ids sort by time."""
    number = int((time.time() if now is None else now) * 1000) << 80 | secrets.randbits(80)
    return "sub_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
