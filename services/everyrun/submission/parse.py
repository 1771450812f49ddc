"""Reading an upload row by row as it streams in: JSON, NDJSON or CSV."""

from __future__ import annotations

import codecs
import csv
from collections.abc import AsyncIterator
from typing import Any

import ijson
import msgspec

from everyrun.submission.rows import QuickRow

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"

_decode = msgspec.json.Decoder().decode
_decode_quick = msgspec.json.Decoder(QuickRow).decode
#: A longer line of NDJSON or CSV is not an input.
_LINE_MAX = 16 << 20
#: Where the rows lie in a JSON body, in an object's list; and the deepest that one may go.
_ROW_DEPTH, _DEEPEST = 2, 200
_OPENING, _CLOSING = frozenset({"start_map", "start_array"}), frozenset({"end_map", "end_array"})
#: Rows given out together at most, where they are read one by one.
_TOGETHER = 500

Piece = list[Any]
"""Rows that follow each other, each a decoded value, a QuickRow or Unreadable."""


class UploadError(Exception):
    """The upload as a whole cannot be read; the text says what is wrong and where."""


class Unreadable(msgspec.Struct, frozen=True):
    """A row that could not be read at all, and why."""

    reason: str


class _Chunks:
    """The body as an asynchronous file, as ijson reads it. Raises UploadError where one row takes too much of it."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._left = b""
        self._of_row = 0

    def row_read(self) -> None:
        """A row is whole: what is read from here on is of the next."""
        self._of_row = 0

    async def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        while size and not self._left:
            try:
                self._left = await anext(self._body)
            except StopAsyncIteration:
                return b""
        part, self._left = self._left[:size], self._left[size:]
        self._of_row += len(part)
        if self._of_row > _LINE_MAX:
            raise UploadError(f"a row is longer than {_LINE_MAX} bytes")
        return part


def rows(content_type: str, body: AsyncIterator[bytes]) -> AsyncIterator[Piece]:
    """The rows of an upload, piece by piece. Raises UploadError; KeyError for another type."""
    if content_type == NDJSON:
        return _ndjson(body)
    return _together({JSON: _json, CSV: _csv}[content_type](body))


async def _together(one_by_one: AsyncIterator[Any]) -> AsyncIterator[Piece]:
    piece: Piece = []
    async for row in one_by_one:
        piece.append(row)
        if len(piece) >= _TOGETHER:
            yield piece
            piece = []
    yield piece


async def _json(body: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """``{"inputs": [ROW, ...]}``."""
    chunks = _Chunks(body)
    found, builder, depth = False, None, 0
    try:
        # Without prefixes: ijson would keep one for each level, each as long as all of those above it.
        async for event, value in ijson.basic_parse_async(chunks, use_float=True):
            if depth < _ROW_DEPTH and event not in _CLOSING:
                _check_envelope(depth, event, value)
            found = found or (depth == 1 and event == "start_array")
            if depth >= _ROW_DEPTH and not (depth == _ROW_DEPTH and event in _CLOSING):
                builder = builder or ijson.ObjectBuilder()
                builder.event(event, value)
            depth += 1 if event in _OPENING else -1 if event in _CLOSING else 0
            if depth > _DEEPEST:
                raise UploadError(f"an input is nested more than {_DEEPEST} levels deep")
            if depth == _ROW_DEPTH and builder is not None:
                yield builder.value
                builder = None
                chunks.row_read()
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UploadError(f"the body is not valid JSON: {error}") from None
    if not found:
        raise UploadError('the body has no list "inputs"')


def _check_envelope(depth: int, event: str, value: Any) -> None:
    """What comes before the first row: an object, its one key, a list. Raises UploadError."""
    if depth == 0 and event != "start_map":
        raise UploadError('the body must be an object: {"inputs": [...]}')
    if depth == 1 and event == "map_key" and value != "inputs":
        raise UploadError(f"unknown field {str(value)[:100]!r}: the body has only inputs")
    if depth == 1 and event not in ("map_key", "start_array"):
        raise UploadError("inputs must be a list")


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The lines, those of each part of the body together."""
    left = b""
    async for part in body:
        *whole, left = (left + part).split(b"\n")
        yield whole
        if len(left) > _LINE_MAX:
            raise UploadError(f"a line is longer than {_LINE_MAX} bytes")
    if left:
        yield [left]


async def _ndjson(body: AsyncIterator[bytes]) -> AsyncIterator[Piece]:
    """A ROW a line; empty lines are passed over."""
    async for lines in _lines(body):
        yield [_row(line) for line in lines if line.strip()]


def _row(line: bytes) -> Any:
    try:
        return _decode_quick(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(f"the line is not valid JSON: {error}")


async def _csv(body: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """A header, then a ROW a line; see :func:`csv_row` for the columns."""
    header: list[str] | None = None
    async for fields in _csv_records(body):
        if header is None:
            header = [name.strip() for name in fields]
            if problem := csv_header_problem(header):
                raise UploadError(problem)
        elif fields:
            yield csv_row(header, fields)


async def _csv_records(body: AsyncIterator[bytes]) -> AsyncIterator[list[str]]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held = ""
    try:
        async for lines in _lines(body):
            for line in lines:
                held += decoder.decode(line) + "\n"
                # An odd number of quotes: the record goes on in the next line.
                if held.count('"') % 2:
                    if len(held) > _LINE_MAX:
                        raise UploadError("a quoted field of the CSV does not end")
                    continue
                for fields in csv.reader([held], strict=True):
                    yield fields
                held = ""
        if held:
            raise UploadError("a quoted field of the CSV does not end")
    except UnicodeDecodeError as error:
        raise UploadError(f"the CSV is not UTF-8: {error}") from None
    except csv.Error as error:
        raise UploadError(f"the CSV cannot be read: {error}") from None


_FILE_COLUMNS = ("url", "file_id", "text")
_OWN_COLUMNS = frozenset({"id", "name", "password", "metadata", *_FILE_COLUMNS})


def csv_header_problem(header: list[str]) -> str | None:
    """What is wrong with a CSV's header; None where nothing is."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return f"the CSV has the column {twice[0]!r} twice"
    if not set(header) & set(_FILE_COLUMNS):
        return f"the CSV has no column for the file: name one of {', '.join(_FILE_COLUMNS)}"
    return None


def csv_row(header: list[str], fields: list[str]) -> Any:
    """A CSV record as a ROW.

    Columns: ``id``; ``url``, ``file_id`` or ``text`` for the file, with ``name`` and ``password``; ``metadata`` holds
    a JSON object; every other column becomes a text in the metadata under its name. An empty field is left out.
    """
    if len(fields) != len(header):
        return Unreadable(f"the line has {len(fields)} fields, the header {len(header)}")
    cells = {name: value for name, value in zip(header, fields, strict=True) if value != ""}
    row: dict[str, Any] = {"file": {}}
    if "id" in cells:
        row["id"] = cells["id"]
    for column, field in (("url", "url"), ("file_id", "id"), ("text", "text"), ("name", "name")):
        if column in cells:
            row["file"][field] = cells[column]
    if "password" in cells:
        row["file"]["settings"] = {"password": cells["password"]}
    metadata: Any = {}
    if "metadata" in cells:
        try:
            metadata = _decode(cells["metadata"])
        except (msgspec.DecodeError, RecursionError) as error:
            return Unreadable(f"the column metadata is not valid JSON: {error}")
    others = {name: value for name, value in cells.items() if name not in _OWN_COLUMNS}
    if others and isinstance(metadata, dict):
        metadata = {**metadata, **others}
    return {**row, "metadata": metadata}
