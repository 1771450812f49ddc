"""Check parameters, make and read page cursors, and convert rows to JSON, for all routes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import asyncpg.pool
import msgspec

from everyrun.http import InvalidFieldError

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy


def check_text(**given: str | None) -> None:
    """Raise InvalidFieldError if one of these parameters has a character that cannot be printed, such as NUL.

    No id has such a character, and Postgres cannot store NUL.
    """
    for field, value in given.items():
        if value is not None and "\x00" in value:
            raise InvalidFieldError(field, "has a NUL character")
        if value is not None and not value.isprintable():
            raise InvalidFieldError(field, "has a character that cannot be printed")


def _bound_to(filters: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(filters, order="sorted")).hexdigest()[:12]


def make_cursor(filters: dict[str, Any], last: str) -> str:
    """Return an opaque cursor for the page after the key ``last``. It is valid only with the same filters."""
    text = msgspec.json.encode([_bound_to(filters), last])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def next_cursor(
    filters: dict[str, Any], rows: Sequence[asyncpg.Record], limit: int, key: Callable[[asyncpg.Record], str]
) -> str | None:
    """Return the cursor for the next page, or None if this page is the last.

    ``rows`` must have been read with a limit of ``limit + 1``: the additional row shows that there is another page.
    """
    return make_cursor(filters, key(rows[limit - 1])) if len(rows) > limit else None


def read_cursor(filters: dict[str, Any], cursor: str | None) -> str | None:
    """Return the key after which a page begins, or None for the first page.

    Raises InvalidFieldError if the cursor is malformed or was made with other filters.
    """
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        bound, last = msgspec.json.decode(text, type=tuple[str, str])
    except (ValueError, msgspec.DecodeError):
        raise malformed_cursor() from None
    if bound != _bound_to(filters):
        raise InvalidFieldError("cursor", "was made with other filters; use the same filters for every page")
    check_text(cursor=last)
    return last


def read_numbered_cursor(filters: dict[str, Any], cursor: str | None) -> tuple[str, int]:
    """Return the name and the number in a cursor whose key is ``name/number``. For the first page return ("", 0)."""
    name, _, number = (read_cursor(filters, cursor) or "/0").rpartition("/")
    if not (number.isdecimal() and len(number) < 10):
        raise malformed_cursor()
    return name, int(number)


def malformed_cursor() -> InvalidFieldError:
    """Return the error for a text that is not a cursor."""
    return InvalidFieldError("cursor", "is malformed; use the next_cursor of a page")


def row_as_json(row: asyncpg.Record) -> dict[str, Any]:
    """Return a row as a dictionary that can be encoded as JSON: its times become RFC 3339 text."""
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}
