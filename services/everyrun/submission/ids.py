"""Make the ids of submissions and cancellations."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_submission_id(now: float | None = None) -> str:
    """Return a new id: ``sub_`` and 26 characters. The first ten encode the time, so ids sort by time."""
    return f"sub_{_by_time(now)}"


def new_cancellation_id(now: float | None = None) -> str:
    """Return a new id: ``can_`` and 26 characters, like those of a submission."""
    return f"can_{_by_time(now)}"


def _by_time(now: float | None) -> str:
    number = int((time.time() if now is None else now) * 1000) << 80 | secrets.randbits(80)
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
