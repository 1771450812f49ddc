"""Cut JSON text into rows, and decode rows without changing any number. Pure, except that it reads the file."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import IO, Any

import msgspec

from everyrun.submission.intake.duplicate_keys import duplicate_key
from everyrun.submission.intake.rows import QuickRow, UnreadableRow
from everyrun.submission.intake.text import UploadError, not_utf8

#: Maximum size of the text of a row, in bytes. It limits the memory for reading a row. rows.py checks a far lower limit
#: for an input.
ROW_MAX_BYTES = 16 << 20
_READ_SIZE = 1 << 16


class InexactError(Exception):
    """A number that a double cannot hold exactly: it has too many digits, or is too large."""


def _exact(text: str) -> float:
    value = float(text)
    try:
        same = Decimal(text) == Decimal(repr(value))
    except ArithmeticError:
        same = False
    if not same:
        raise InexactError(
            f"the number {text[:40]} has too many digits or is too large to be kept exactly; write it as a string"
        )
    return value


#: Decode JSON. Raises InexactError if a number in it would change.
decode = msgspec.json.Decoder(float_hook=_exact).decode
_decode_quick = msgspec.json.Decoder(QuickRow, float_hook=_exact).decode
#: Finds an escape that is half of a surrogate pair.
_HALF_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]").search


def decode_row(raw: bytes, line: int) -> Any:
    """Return the value of the row that begins on line ``line``.

    The value of a row in the most common form is a QuickRow. The value of any other valid row is a plain Python value.
    For an invalid row, return UnreadableRow. Raises EncodingError if the row is not UTF-8.
    """
    try:
        return _without_duplicates(raw, _decode_quick(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InexactError):
        pass
    try:
        return _without_duplicates(raw, decode(raw))
    except InexactError as error:
        return UnreadableRow(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if problem := not_utf8(raw, line):
            raise problem from None
        half = r"; a \u escape is only half of a character" if _HALF_ESCAPE(raw) else ""
        return UnreadableRow(f"is not valid JSON: {error}{half}")


def _without_duplicates(raw: bytes, row: Any) -> Any:
    """Return the row, or UnreadableRow if one of its objects has the same key twice."""
    found = duplicate_key(raw, row)
    if found is None:
        return row
    identifier = row.get("id") if isinstance(row, dict) else getattr(row, "id", None)
    return UnreadableRow(key_twice(found[1]), found[0], identifier if isinstance(identifier, str) else None)


def key_twice(key: str) -> str:
    """Return the reason for refusing a row in which an object has ``key`` twice."""
    return f"has the key {key!r} twice in one object; only one of the values would be kept"


_SPACE = re.compile(rb"[ \t\r\n]*").match
_OPENING = (b"[", b"{")
#: Matches everything up to the next bracket outside strings, or up to a string whose end has not been read yet.
_FLAT = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL).match
#: Matches a whole string, a number, or true, false or null.
_WORD = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,:\[\]{}"]*', re.DOTALL).match


class JsonText:
    """Cut JSON text into values in linear time, by looking only at brackets and quotes.

    It does not check that a value is valid; the decoding does that later.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self._line = 1
        #: ``_line`` already counts the line breaks before this index.
        self._counted = 0

    def _read_more(self, what: str) -> bool:
        """Drop the text that was consumed, and read more; return False at the end of the file.

        The number of bytes to read is at least the number of bytes that are left unconsumed. So the text doubles each
        time, and a long value is read in linear time. Raises UploadError if what is left is too long; ``what`` names
        it.
        """
        unused = len(self._data) - self._at
        if unused > ROW_MAX_BYTES:
            raise UploadError(f"{what} is longer than {ROW_MAX_BYTES} bytes")
        self.line()
        part = self._file.read(max(_READ_SIZE, unused))
        self._data = self._data[self._at :] + part
        self._counted = self._at = 0
        return bool(part)

    def line(self) -> int:
        """Return the number of the line that the next byte is on, from 1."""
        self._line += self._data.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> bytes:
        """Return the next byte that is not white space, without consuming it; empty at the end of the file."""
        while True:
            found = _SPACE(self._data, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._read_more("white space"):
                return b""

    def skip(self) -> None:
        """Consume the next byte."""
        self._at += 1

    def expect(self, byte: bytes, what: str) -> None:
        """Consume the next byte that is not white space.

        Raises UploadError if that is not ``byte``; ``what`` names it.
        """
        if self.peek() != byte:
            raise UploadError(f"the body is not valid JSON: {what} is missing on line {self.line()}")
        self.skip()

    def take_value(self, what: str) -> bytes:
        """Consume and return the value that begins here.

        Raises UploadError if the file ends within the value; ``what`` names the value.
        """
        if self.peek() not in _OPENING:
            return self._word(what)
        # ``size`` is counted from the start of the value, because _read_more drops the text before the value.
        depth, size = 0, 0
        while True:
            found = _FLAT(self._data, self._at + size)
            size = found.end() - self._at if found else size
            byte = self._data[self._at + size : self._at + size + 1]
            if byte in (b"", b'"'):
                # The text read so far ends at this byte, or within a string that begins here.
                if not self._read_more(what):
                    raise UploadError(f"the body is not valid JSON: it ends within {what}")
                continue
            size += 1
            depth += 1 if byte in b"[{" else -1
            if depth <= 0:
                return self._consume(size, what)

    def _consume(self, size: int, what: str) -> bytes:
        if size > ROW_MAX_BYTES:
            raise UploadError(f"{what} is longer than {ROW_MAX_BYTES} bytes")
        raw = self._data[self._at : self._at + size]
        self._at += size
        return raw

    def _word(self, what: str) -> bytes:
        """Consume and return a string, a number, or true, false or null."""
        while True:
            found = _WORD(self._data, self._at)
            end = found.end() if found else self._at
            complete = end < len(self._data) and self._data[end : end + 1] != b'"'
            if complete or self._data[end - 1 : end] == b'"' or not self._read_more(what):
                break
        if end == self._at:
            raise UploadError(f"the body is not valid JSON: {what} is missing on line {self.line()}")
        return self._consume(end - self._at, what)
