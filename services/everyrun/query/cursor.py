"""Cursors: opaque, and bound to the filters they were made with. Pure."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec

from everyrun.errors import Invalid


class CursorError(Invalid):
    """Not a cursor of this query."""


def _bound_to(filters: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(filters, order="sorted")).hexdigest()[:12]


def make(filters: dict[str, Any], last: str) -> str:
    """A cursor to go on after ``last``."""
    text = msgspec.json.encode([_bound_to(filters), last])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def read(filters: dict[str, Any], cursor: str | None) -> str | None:
    """What to go on after; None for the beginning. Raises CursorError."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        bound, last = msgspec.json.decode(text, type=tuple[str, str])
    except (ValueError, msgspec.DecodeError):
        raise CursorError("not a cursor of ours") from None
    if bound != _bound_to(filters):
        raise CursorError("made with other filters; keep them the same from page to page")
    return last
