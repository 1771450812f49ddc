"""What the calls that take rows have in common: the body, its limits, and how bad rows are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import msgspec
from fastapi import Request

from everyrun.http import ApiError
from everyrun.settings import Settings
from everyrun.submission import parse
from everyrun.submission.intake import BadRowsError

_ROW = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 255, "description": "Unique in the submission."},
        "file": {
            "type": "object",
            "description": "Exactly one of url (with name and settings.password), id, and text (with name).",
            "properties": {
                "url": {"type": "string"},
                "id": {"type": "string"},
                "text": {"type": "string"},
                "name": {"type": "string"},
                "settings": {"type": "object", "properties": {"password": {"type": "string"}}},
            },
        },
        "metadata": {"type": "object", "description": "At most 10 KB; no key begins everyrun:."},
    },
}
BODY = {
    "required": True,
    "content": {
        parse.JSON: {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"type": "array", "minItems": 1, "items": _ROW}},
            }
        },
        parse.NDJSON: {"schema": {"type": "string", "description": "A row, as in inputs above, a line."}},
        parse.CSV: {"schema": {"type": "string", "description": (parse.csv_row.__doc__ or "").strip()}},
    },
}


#: Of the pool's connections (submission/app.py) the others are left to the API, the dispatcher and the resolver.
_AT_ONCE = 4


class UploadsFullError(Exception):
    """As many uploads as are taken at a time are under way; the text says what to do."""


class Uploads:
    """The uploads under way: each holds a connection to Postgres for as long as its caller goes on sending."""

    def __init__(self) -> None:
        self._under_way = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Room for one upload while the block runs. Raises UploadsFullError."""
        if self._under_way >= _AT_ONCE:
            raise UploadsFullError(
                f"{_AT_ONCE} uploads are under way, which is as many as are taken at once; try again"
            )
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


async def _limited(request: Request, most: int) -> AsyncIterator[bytes]:
    taken = 0
    async for part in request.stream():
        taken += len(part)
        if taken > most:
            raise ApiError(413, "TOO_LARGE", f"the upload is larger than {most} bytes; split it")
        yield part


def rows_of(request: Request, settings: Settings) -> AsyncIterator[parse.Piece]:
    """The rows of a request's body, as they stream in. Raises ApiError (415) for a kind that is not taken."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (parse.JSON, parse.NDJSON, parse.CSV):
        kinds = f"{parse.JSON}, {parse.NDJSON} or {parse.CSV}"
        raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", f"content-type must be {kinds}, not {content_type!r}")
    return parse.rows(content_type, _limited(request, settings.upload_max_bytes))


def bad_rows(error: BadRowsError) -> ApiError:
    """The answer 422 that lists what is wrong with which row."""
    if not error.count:
        return ApiError(422, "NO_ROWS", "the upload has no rows; nothing was taken in", bad_rows=0, rows=[])
    message = f"{error.count} bad rows, so nothing was taken in; the first {len(error.rows)} are listed"
    rows = [msgspec.to_builtins(row) for row in error.rows]
    return ApiError(422, "BAD_ROWS", message, bad_rows=error.count, rows=rows)


def no_nul(field: str, value: str) -> None:
    """Refuse with 422 what Postgres cannot hold."""
    if "\x00" in value:
        raise ApiError(422, "INVALID_REQUEST", f"{field}: has a NUL character", field=field)
