"""Reading what is handed in row by row: JSON, NDJSON or CSV. The command line and the service read by this code."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import IO, Any

import msgspec

from everyrun.submission.intake.columns import Columns, Options, delimiter_of
from everyrun.submission.intake.numbers import InexactError, decode, decode_quick
from everyrun.submission.intake.rows import Unreadable
from everyrun.submission.intake.text import UploadError, not_utf8, utf8

__all__ = ["CSV", "JSON", "KINDS", "NDJSON", "Options", "Piece", "Reading", "Unreadable", "UploadError", "pieces"]

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
KINDS = (JSON, NDJSON, CSV)

#: Bytes of a row that are looked at, at most; the limit of an input (rows.py) is far below.
_ROW_MAX = 16 << 20
#: Rows, and bytes, given out together.
_TOGETHER, _TOGETHER_BYTES = 500, 1 << 20
_PART, _BLOCK = 1 << 16, 1 << 18

Row = tuple[int, Any]
"""The line that a row begins in, from 1; and its decoded value, a QuickRow or Unreadable."""
Piece = list[Row]
"""Rows that follow each other."""

# Limited by what is read of a row, in _CsvLines; the module's own limit is of a field and not enough.
csv.field_size_limit(2 * _ROW_MAX)


class Reading:
    """The rows of a seekable file. Iterating raises UploadError."""

    def __init__(self, kind: str, file: IO[bytes], options: Options = Options()) -> None:  # noqa: B008
        self._kind = kind
        self._file = file
        self._options = options
        #: Of a CSV, once its header was read.
        self.columns: Columns | None = None
        #: Bytes, or characters, that were read for the rows so far.
        self.taken = 0

    def __iter__(self) -> Iterator[Row]:
        """Read from the beginning."""
        file = utf8(self._file, self._options.encoding)
        return {JSON: self._json, NDJSON: self._ndjson, CSV: self._csv}[self._kind](file)

    def _ndjson(self, file: IO[bytes]) -> Iterator[Row]:
        """A ROW a line; empty lines are passed over."""
        line, left, more = 0, b"", True
        while more:
            part = file.read(_BLOCK)
            more = bool(part)
            self.taken += len(part)
            *whole, left = (left + part).split(b"\n")
            for raw in whole if more else (*whole, left):
                line += 1
                if raw and not raw.isspace():
                    yield line, _decoded(raw, line)
            if len(left) > _ROW_MAX:
                line += 1
                yield line, Unreadable(f"the line is longer than {_ROW_MAX} bytes")
                while part and b"\n" not in part:
                    part = file.read(_BLOCK)
                left = part.partition(b"\n")[2]

    def _json(self, file: IO[bytes]) -> Iterator[Row]:
        """``{"inputs": [ROW, ...]}``: the same rows in a list."""
        text = _JsonText(file)
        if text.next() != b"{":
            raise UploadError('the body must be an object: {"inputs": [...]}')
        text.skip()
        if text.next() not in (b'"', b"}"):
            raise UploadError(f"the body is not valid JSON: a field is missing in line {text.line()}")
        if text.next() == b'"' and (name := text.value("its field")) != b'"inputs"':
            raise UploadError(f"unknown field {name.decode(errors='replace')[:100]}: the body has only inputs")
        if text.next() == b"}":
            raise UploadError('the body has no list "inputs"')
        text.expect(b":", 'a colon after "inputs"')
        if text.next() != b"[":
            raise UploadError("inputs must be a list")
        text.skip()
        number = 0
        while text.next() != b"]":
            if number:
                text.expect(b",", f"a comma after row {number}")
            number += 1
            text.next()
            line = text.line()
            raw = text.value(f"row {number}")
            self.taken += len(raw)
            yield line, _decoded(raw, line)
        text.skip()
        if text.next() == b",":
            raise UploadError("unknown field after the list: the body has only inputs")
        text.expect(b"}", "the end of the object after the list")
        if text.next():
            raise UploadError(f"the body is not valid JSON: something follows its end, in line {text.line()}")

    def _csv(self, file: IO[bytes]) -> Iterator[Row]:
        """A header, then a ROW a record; empty records are passed over. See :class:`Columns`."""
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        try:
            yield from self._records(_CsvLines(text))
        finally:
            text.detach()

    def _records(self, lines: _CsvLines) -> Iterator[Row]:
        options = self._options
        first = lines.first()
        if separator := re.fullmatch(r'"?sep=(.)"?\s*', first):
            # Excel's own way to name the delimiter.
            options = options._replace(delimiter=options.delimiter or separator[1])
            next(lines)
            first = lines.first()
        delimiter = delimiter_of(first, options)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        row = 0
        while True:
            start = lines.begin()
            try:
                fields = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                if self.columns is None:
                    raise UploadError(f"the header (line {start}) is not valid CSV: {error}") from None
                row += 1
                yield start, Unreadable(lines.problem(error, start))
                continue
            except _TooLongError:
                raise UploadError(
                    f"row {row + 1}, which begins in line {start}, is longer than {_ROW_MAX} characters: "
                    "does a quoted field that opens there not end?"
                ) from None
            self.taken += lines.size
            if not any(fields):
                continue
            if self.columns is None:
                self.columns = Columns(fields, options)
                continue
            row += 1
            yield start, self.columns.row(fields)


class _TooLongError(Exception):
    pass


class _CsvLines:
    """The lines of a CSV, counted. Raises EncodingError, and _TooLongError if one record takes too many."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._first: str | None = None
        self.count = 0
        #: Characters of the record so far.
        self.size = 0

    def __iter__(self) -> _CsvLines:
        return self

    def first(self) -> str:
        """Return the next line that is not empty, and leave it to be read; the empty ones before it are passed over."""
        if self._first is None:
            for line in self:
                if line.strip("\r\n"):
                    self.count -= 1
                    self._first = line
                    break
        return self._first or ""

    def begin(self) -> int:
        """Begin a record; return its first line."""
        self.size = 0
        return self.count + 1

    def __next__(self) -> str:
        line, self._first = self._first, None
        if line is None:
            line = self._text.readline(_ROW_MAX + 1)
            if not line.isascii() and (error := not_utf8(line.encode("utf-8", "surrogateescape"), self.count + 1)):
                raise error
        if not line:
            raise StopIteration
        self.count += 1
        self.size += len(line)
        if self.size > _ROW_MAX:
            raise _TooLongError
        return line

    def problem(self, error: csv.Error, start: int) -> str:
        """Say what is wrong with the record that begins in a line."""
        if "unexpected end" in str(error):
            return (
                f"a quoted field that opens here does not end: everything down to line {self.count} was read as part "
                'of it; close it with ", and write "" for a quote within it'
            )
        where = "" if self.count == start else f", in line {self.count},"
        return f'not valid CSV: {error}; a quote within a quoted field{where} is written ""'


_AFTER_SPACE = re.compile(rb"[ \t\r\n]*").match
_OPENING = (b"[", b"{")
#: All up to the next bracket, or to a string that does not end in what is held.
_FLAT = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL).match
_WORD = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,:\[\]{}"]*', re.DOTALL).match


class _JsonText:
    """JSON cut into values by its brackets and quotes, in linear time; whether they are right is seen by decoding."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self._line = 1
        self._counted = 0

    def _more(self, what: str) -> bool:
        """Read on, at least as much as is held, and forget what is behind."""
        held = len(self._data) - self._at
        if held > _ROW_MAX:
            raise UploadError(f"{what} is longer than {_ROW_MAX} bytes")
        self.line()
        part = self._file.read(max(_PART, held))
        self._data = self._data[self._at :] + part
        self._counted = self._at = 0
        return bool(part)

    def line(self) -> int:
        """Return the line of the next byte."""
        self._line += self._data.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def next(self) -> bytes:
        """Return the next byte that is no white space, without taking it; none at the end."""
        while True:
            found = _AFTER_SPACE(self._data, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._more("white space"):
                return b""

    def skip(self) -> None:
        """Take the next byte."""
        self._at += 1

    def expect(self, byte: bytes, what: str) -> None:
        """Take the byte. Raises UploadError if another one comes."""
        if self.next() != byte:
            raise UploadError(f"the body is not valid JSON: {what} is missing in line {self.line()}")
        self.skip()

    def value(self, what: str) -> bytes:
        """Take a value that begins here. Raises UploadError if it does not end."""
        if self.next() not in _OPENING:
            return self._word(what)
        # Places count from the beginning of the value: what lies before it may be forgotten meanwhile.
        depth, place = 0, 0
        while True:
            found = _FLAT(self._data, self._at + place)
            place = found.end() - self._at if found else place
            byte = self._data[self._at + place : self._at + place + 1]
            if byte in (b"", b'"'):
                # All that is held was seen, or a string goes on beyond it.
                if not self._more(what):
                    raise UploadError(f"the body is not valid JSON: it ends within {what}")
                continue
            place += 1
            depth += 1 if byte in b"[{" else -1
            if depth <= 0:
                return self._take(place, what)

    def _take(self, size: int, what: str) -> bytes:
        if size > _ROW_MAX:
            raise UploadError(f"{what} is longer than {_ROW_MAX} bytes")
        raw = self._data[self._at : self._at + size]
        self._at += size
        return raw

    def _word(self, what: str) -> bytes:
        """Take a text, a number, or true, false or null."""
        while True:
            found = _WORD(self._data, self._at)
            end = found.end() if found else self._at
            complete = end < len(self._data) and self._data[end : end + 1] != b'"'
            if complete or self._data[end - 1 : end] == b'"' or not self._more(what):
                break
        if end == self._at:
            raise UploadError(f"the body is not valid JSON: {what} is missing in line {self.line()}")
        return self._take(end - self._at, what)


_HALF = re.compile(rb"\\u[dD][89a-fA-F]").search


def _decoded(raw: bytes, line: int) -> Any:
    """Return the value of a row. Raises EncodingError."""
    try:
        return decode_quick(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InexactError):
        pass
    try:
        return decode(raw)
    except InexactError as error:
        return Unreadable(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if problem := not_utf8(raw, line):
            raise problem from None
        half = "; a \\u escape is half of a character" if _HALF(raw) else ""
        return Unreadable(f"is not valid JSON: {error}{half}")


async def pieces(reading: Reading) -> AsyncIterator[Piece]:
    """Yield the rows piece by piece, read in a thread. Raises UploadError."""
    rows = iter(reading)
    while piece := await asyncio.to_thread(_piece, reading, rows):
        yield piece


def _piece(reading: Reading, rows: Iterator[Row]) -> Piece:
    enough = reading.taken + _TOGETHER_BYTES
    piece: Piece = []
    for row in islice(rows, _TOGETHER):
        piece.append(row)
        if reading.taken >= enough:
            break
    return piece


def spool() -> IO[bytes]:
    """Return a file for an upload, in the folder for temporary files (TMPDIR)."""
    return tempfile.TemporaryFile()


async def rows(kind: str, body: AsyncIterator[bytes]) -> AsyncIterator[Piece]:
    """Yield the rows of a body, once it is whole. Raises UploadError; KeyError for another kind."""
    with spool() as file:
        async for part in body:
            await asyncio.to_thread(file.write, part)
        async for piece in pieces(Reading(kind, file)):
            yield piece
