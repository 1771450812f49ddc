"""Read the rows of a manifest: JSON, NDJSON, CSV or Parquet. The command line and the service share this code."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import IO, Any

from everyrun.submission.intake.columns import Columns, Options, delimiter_of
from everyrun.submission.intake.json_text import ROW_MAX_BYTES, JsonText, decode_row
from everyrun.submission.intake.rows import UnreadableRow
from everyrun.submission.intake.text import UploadError, not_utf8, utf8

__all__ = [
    "CSV",
    "JSON",
    "KINDS",
    "NDJSON",
    "PARQUET",
    "Options",
    "RowGroup",
    "RowReader",
    "UnreadableRow",
    "UploadError",
    "row_groups",
]

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
#: The formats that the service accepts.
KINDS = (JSON, NDJSON, CSV)
#: Read only by the command line, which sends the rows as NDJSON. An upload of Parquet could expand to any size.
PARQUET = "application/vnd.apache.parquet"

#: A group of rows ends when it has reached this number of rows or this number of bytes.
_GROUP_ROWS, _GROUP_BYTES = 500, 1 << 20
#: How much of an NDJSON file is read at a time, in bytes.
_BLOCK = 1 << 18

Row = tuple[int, Any]
"""The line on which a row begins, from 1, and its decoded value: a QuickRow, another value, or UnreadableRow."""
RowGroup = list[Row]
"""Consecutive rows."""

# _CsvLines limits the size of a whole record. The csv module has its own limit for a single field. Raise the limit of
# the csv module, so that the limit in _CsvLines is always reached first.
csv.field_size_limit(2 * ROW_MAX_BYTES)


class RowReader:
    """Iterate over the rows of a seekable file. Raises UploadError if the file cannot be read in its format."""

    def __init__(self, kind: str, file: IO[bytes], options: Options = Options()) -> None:  # noqa: B008
        self._kind = kind
        self._file = file
        self._options = options
        #: The columns of a CSV or of a Parquet file; None before its header was read.
        self.columns: Columns | None = None
        #: Number of bytes (for a CSV: characters) in the rows read so far.
        self.consumed = 0

    def __iter__(self) -> Iterator[Row]:
        """Read the rows from the beginning of the file."""
        if self._kind == PARQUET:
            return self._parquet()
        file = utf8(self._file, self._options.encoding)
        return {JSON: self._json, NDJSON: self._ndjson, CSV: self._csv}[self._kind](file)

    def _parquet(self) -> Iterator[Row]:
        # Imported only here, because pyarrow takes long to import.
        from everyrun.submission.intake.parquet import ParquetTable

        table = ParquetTable(self._file)
        self.columns = Columns(table.header, self._options, "Parquet file")
        return table.rows(self.columns)

    def _ndjson(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield one row per line. Empty lines are skipped."""
        line, rest, more = 0, b"", True
        while more:
            part = file.read(_BLOCK)
            more = bool(part)
            self.consumed += len(part)
            *lines, rest = (rest + part).split(b"\n")
            for raw in lines if more else (*lines, rest):
                line += 1
                if raw and not raw.isspace():
                    yield line, decode_row(raw, line)
            if len(rest) > ROW_MAX_BYTES:
                line += 1
                yield line, UnreadableRow(f"the line is longer than {ROW_MAX_BYTES} bytes")
                while part and b"\n" not in part:
                    part = file.read(_BLOCK)
                rest = part.partition(b"\n")[2]

    def _json(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield the rows of ``{"inputs": [ROW, ...]}``."""
        text = JsonText(file)
        if text.peek() != b"{":
            raise UploadError('the body must be an object: {"inputs": [...]}')
        text.skip()
        if text.peek() not in (b'"', b"}"):
            raise UploadError(f"the body is not valid JSON: a field is missing on line {text.line()}")
        if text.peek() == b'"' and (name := text.take_value("its field")) != b'"inputs"':
            raise UploadError(f"unknown field {name.decode(errors='replace')[:100]}: the body has only inputs")
        if text.peek() == b"}":
            raise UploadError('the body has no list "inputs"')
        text.expect(b":", 'a colon after "inputs"')
        if text.peek() != b"[":
            raise UploadError("inputs must be a list")
        text.skip()
        number = 0
        while text.peek() != b"]":
            if number:
                text.expect(b",", f"a comma after row {number}")
            number += 1
            text.peek()  # Skips white space, so that the line is the one on which the row begins.
            line = text.line()
            raw = text.take_value(f"row {number}")
            self.consumed += len(raw)
            yield line, decode_row(raw, line)
        text.skip()
        if text.peek() == b",":
            raise UploadError("unknown field after the list: the body has only inputs")
        text.expect(b"}", "the end of the object after the list")
        if text.peek():
            raise UploadError(f"the body is not valid JSON: there is text after its end, on line {text.line()}")

    def _csv(self, file: IO[bytes]) -> Iterator[Row]:
        """Yield one row per record after the header.

        Empty records are skipped. :class:`Columns` explains the columns.
        """
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        try:
            yield from self._records(_CsvLines(text))
        finally:
            text.detach()

    def _records(self, lines: _CsvLines) -> Iterator[Row]:
        options = self._options
        first = lines.peek()
        if separator := re.fullmatch(r'"?sep=(.)"?\s*', first):
            # Excel writes such a line before the header to name the delimiter.
            options = options._replace(delimiter=options.delimiter or separator[1])
            next(lines)
            first = lines.peek()
        delimiter = delimiter_of(first, options)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        row = 0
        while True:
            start = lines.start_record()
            try:
                fields = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                if self.columns is None:
                    raise UploadError(f"the header (line {start}) is not valid CSV: {error}") from None
                row += 1
                yield start, UnreadableRow(lines.problem(error, start))
                continue
            except _RecordTooLongError:
                raise UploadError(
                    f"row {row + 1}, which begins on line {start}, is longer than {ROW_MAX_BYTES} characters. "
                    "Is the closing quote of a field missing?"
                ) from None
            self.consumed += lines.size
            if not any(fields):
                continue
            if self.columns is None:
                self.columns = Columns(fields, options)
                continue
            row += 1
            yield start, self.columns.row(fields)


class _RecordTooLongError(Exception):
    pass


class _CsvLines:
    """Iterate over the lines of a CSV, and count them for error messages.

    Raises EncodingError if a line is not UTF-8. Raises _RecordTooLongError if a record is too long.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._first: str | None = None
        self.count = 0
        #: Number of characters of the current record that were read so far.
        self.size = 0

    def __iter__(self) -> _CsvLines:
        return self

    def peek(self) -> str:
        """Return the next line that is not empty, without consuming it. Empty lines before it are consumed."""
        if self._first is None:
            for line in self:
                if line.strip("\r\n"):
                    self.count -= 1
                    self._first = line
                    break
        return self._first or ""

    def start_record(self) -> int:
        """Begin a new record; return the line on which it begins."""
        self.size = 0
        return self.count + 1

    def __next__(self) -> str:
        line, self._first = self._first, None
        if line is None:
            line = self._text.readline(ROW_MAX_BYTES + 1)
            if not line.isascii() and (error := not_utf8(line.encode("utf-8", "surrogateescape"), self.count + 1)):
                raise error
        if not line:
            raise StopIteration
        self.count += 1
        self.size += len(line)
        if self.size > ROW_MAX_BYTES:
            raise _RecordTooLongError
        return line

    def problem(self, error: csv.Error, start: int) -> str:
        """Return what is wrong with the record that begins on line ``start``."""
        if "unexpected end" in str(error):
            return (
                f"a quoted field that opens here does not end, so everything down to line {self.count} belongs to it. "
                'Close it with ", and write "" for a quote inside it'
            )
        where = "" if self.count == start else f" on line {self.count}"
        return f'not valid CSV{where}: {error}. Write "" for a quote inside a quoted field'


async def row_groups(reader: RowReader) -> AsyncIterator[RowGroup]:
    """Yield the rows of a reader in groups.

    They are read in a thread, so that the event loop is not blocked. Raises UploadError.
    """
    rows = iter(reader)
    while group := await asyncio.to_thread(_row_group, reader, rows):
        yield group


def _row_group(reader: RowReader, rows: Iterator[Row]) -> RowGroup:
    enough = reader.consumed + _GROUP_BYTES
    group: RowGroup = []
    for row in islice(rows, _GROUP_ROWS):
        group.append(row)
        if reader.consumed >= enough:
            break
    return group


def spool() -> IO[bytes]:
    """Return a temporary file without a name, in the folder for temporary files (TMPDIR), to hold an upload."""
    return tempfile.TemporaryFile()


async def read_rows(kind: str, body: AsyncIterator[bytes]) -> AsyncIterator[RowGroup]:
    """Receive a whole body into a temporary file, then yield its rows in groups.

    Raises UploadError if the body cannot be read, and KeyError if ``kind`` is unknown.
    """
    with spool() as file:
        async for part in body:
            await asyncio.to_thread(file.write, part)
        async for group in row_groups(RowReader(kind, file)):
            yield group
