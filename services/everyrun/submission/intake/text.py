"""Read text files in any common encoding as UTF-8. Pure but for reading the file."""

from __future__ import annotations

import codecs
import io
import re
from typing import IO, cast

from everyrun.errors import Invalid

#: Longer marks first, because the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Encodings of text files. Python's codecs also include compressions and escapes.
_OF_TEXT = re.compile(
    r"ascii|utf-(8|16|32)(-le|-be|-sig)?|iso8859-\d+|cp\d+|mac-[a-z]+|koi8-[rtu]|gb2312|gbk|gb18030|big5(hkscs)?"
    r"|euc_(jp|kr|jis_2004|jisx0213)|shift_jis(_2004|x0213)?|johab|tis-620|hp-roman8|ptcp154|kz1048"
)
_READ_SIZE = 1 << 16


class UploadError(Invalid):
    """The upload cannot be read at all; the text says what is wrong and where."""


class EncodingError(UploadError):
    """The text does not match its encoding. ``named`` is true if the caller named the encoding."""

    def __init__(self, message: str, named: bool = False) -> None:
        super().__init__(message)
        self.named = named


def known_encoding(name: str) -> str:
    """Return Python's name of a text encoding. Raises EncodingError if there is none."""
    try:
        found = codecs.lookup(name).name if name.isascii() and "\x00" not in name else ""
    except (LookupError, ValueError):
        found = ""
    if not _OF_TEXT.fullmatch(found):
        raise EncodingError(f"{name!a} is not a known encoding; common ones are utf-8, utf-16 and windows-1252", True)
    return found


def utf8(file: IO[bytes], encoding: str | None) -> IO[bytes]:
    """Return the content of a seekable file as UTF-8, from its beginning, without a byte-order mark.

    A byte-order mark decides the encoding, else ``encoding``, else UTF-8. Reading another encoding raises EncodingError
    for invalid bytes. UTF-8 is passed on unchecked: the reader of the rows checks it, because it knows the line.
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
    return cast(IO[bytes], io.BufferedReader(_RecodedFile(file, named), _READ_SIZE))


class _RecodedFile(io.RawIOBase):
    """A file that is recoded to UTF-8 while it is read."""

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
            part = self._file.read(_READ_SIZE)
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
    """Return the error if the text that begins in ``line`` is not UTF-8; None if it is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        # Show the word around the byte, which a person can find in the file.
        word = re.search(rb"[^\s,;\t\"]*\Z", raw[: error.start][-20:])
        rest = re.match(rb"[^\s,;\t\"]*", raw[error.start :][:20])
        seen = ((word[0] if word else b"") + (rest[0] if rest else b"")).decode("cp1252", "replace")
        return EncodingError(
            f"line {line} is not UTF-8: byte 0x{raw[error.start]:02X} (in Windows-1252 it would read {seen!r}). "
            "Save the file as UTF-8, or name its encoding"
        )
    return None
