"""Reading files of any usual encoding as UTF-8. Pure but for reading the file."""

from __future__ import annotations

import codecs
import io
import re
from typing import IO, cast

from everyrun.errors import Invalid

#: Longer marks first: the one of UTF-16 is the beginning of the one of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Python's codecs hold compressions, escapes and other things that are no encodings of text files.
_OF_TEXT = re.compile(
    r"ascii|utf-(8|16|32)(-le|-be|-sig)?|iso8859-\d+|cp\d+|mac-[a-z]+|koi8-[rtu]|gb2312|gbk|gb18030|big5(hkscs)?"
    r"|euc_(jp|kr|jis_2004|jisx0213)|shift_jis(_2004|x0213)?|johab|tis-620|hp-roman8|ptcp154|kz1048"
)
_PART = 1 << 16


class UploadError(Invalid):
    """The upload as a whole cannot be read; the text says what is wrong and where."""


class EncodingError(UploadError):
    """The text is not of the encoding that it is read in. ``named`` is true if the caller chose the encoding."""

    def __init__(self, message: str, named: bool = False) -> None:
        super().__init__(message)
        self.named = named


def known_encoding(name: str) -> str:
    """Return Python's name of an encoding of text. Raises EncodingError."""
    try:
        found = codecs.lookup(name).name if name.isascii() and "\x00" not in name else ""
    except (LookupError, ValueError):
        found = ""
    if not _OF_TEXT.fullmatch(found):
        raise EncodingError(f"{name!a} is no known encoding; usual ones are utf-8, utf-16 and windows-1252", True)
    return found


def utf8(file: IO[bytes], encoding: str | None) -> IO[bytes]:
    """Return the content of a seekable file as UTF-8, from its beginning, without a byte-order mark.

    A byte-order mark decides the encoding, then ``encoding``, and UTF-8 if neither is there. Bytes that are not UTF-8
    are left to the reader of the rows, which knows the line; of other encodings reading raises EncodingError.
    """
    named = known_encoding(encoding) if encoding else "utf-8"
    file.seek(0)
    start = file.read(4)
    for mark, of_mark in _MARKS:
        if start.startswith(mark):
            named = of_mark
            file.seek(len(mark))
            break
    else:
        file.seek(0)
    if named in ("utf-8", "utf-8-sig", "ascii"):
        return file
    return cast(IO[bytes], io.BufferedReader(_Recoded(file, named), _PART))


class _Recoded(io.RawIOBase):
    """A file's text as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""
        self._read = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._left and not self._ended:
            part = self._file.read(_PART)
            self._ended = not part
            try:
                self._left = self._decoder.decode(part, final=self._ended).encode()
            except UnicodeError as error:
                reason = getattr(error, "reason", "")
                raise EncodingError(
                    f"the text is not {self._encoding}: {reason}, within {len(part)} bytes from byte {self._read}", True
                ) from None
            self._read += len(part)
        size = min(len(view), len(self._left))
        view[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def not_utf8(raw: bytes, line: int) -> EncodingError | None:
    """Return the error of a line, or of a row that begins in it, that is not UTF-8; None if it is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        # The word that the byte is in, for people to recognise.
        word = re.search(rb"[^\s,;\t\"]*\Z", raw[: error.start][-20:])
        rest = re.match(rb"[^\s,;\t\"]*", raw[error.start :][:20])
        seen = ((word[0] if word else b"") + (rest[0] if rest else b"")).decode("cp1252", "replace")
        return EncodingError(
            f"line {line} is not UTF-8: byte 0x{raw[error.start]:02X} (in Windows-1252 it would read {seen!r}). "
            "Save the file as UTF-8, or name its encoding"
        )
    return None
