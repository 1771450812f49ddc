"""What the routes have in common: values that can be asked for, pages, and rows as JSON takes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import asyncpg
import asyncpg.pool

from everyrun.http import ApiError
from everyrun.query import cursor as cursors

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy


def clean(**given: str | None) -> None:
    """Refuse what Postgres cannot hold and no id of ours can be. Raises ApiError (422), naming the field."""
    for field, value in given.items():
        if value is not None and "\x00" in value:
            raise ApiError(422, "INVALID_REQUEST", f"{field}: has a NUL character", field=field)
        if value is not None and not value.isprintable():
            raise ApiError(422, "INVALID_REQUEST", f"{field}: has a character that cannot be printed", field=field)


def after(filters: dict[str, Any], cursor: str | None) -> str | None:
    """What a page begins after; None for the first. Raises ApiError (422) for a cursor of another query."""
    try:
        last = cursors.read(filters, cursor)
    except cursors.CursorError as error:
        raise ApiError(422, "INVALID_REQUEST", f"cursor: {error}", field="cursor") from None
    clean(cursor=last)
    return last


def plain(row: asyncpg.Record) -> dict[str, Any]:
    """The row with times as RFC 3339 text."""
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}
