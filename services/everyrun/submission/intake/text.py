"""Read text files in any common encoding as UTF-8. Pure, except that it reads the file."""

from __future__ import annotations

import codecs
import io
import re
from typing import IO, cast

from everyrun.errors import Invalid

#: Byte-order marks and their encodings. UTF-32 comes before UTF-16, because its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Matches Python's names of encodings for text files. Python's other codecs, such as compressions and escapes, are not
#: allowed.
_OF_TEXT = re.compile(
    r"ascii|utf-(8|16|32)(-le|-be|-sig)?|iso8859-\d+|cp\d+|mac-[a-z]+|koi8-[rtu]|gb2312|gbk|gb18030|big5(hkscs)?"
    r"|euc_(jp|kr|jis_2004|jisx0213)|shift_jis(_2004|x0213)?|johab|tis-620|hp-roman8|ptcp154|kz1048"
)
_READ_SIZE = 1 << 16
#: The Unicode encodings. Text in UTF-16 or UTF-32 is never valid UTF-8 with characters outside ASCII, so files in these
#: encodings need no check for that.
_UNICODE = frozenset(name for _, name in _MARKS) | {"utf-16", "utf-32"}


class UploadError(Invalid):
    """The upload cannot be read at all; the text says what is wrong and where."""


class EncodingError(UploadError):
    """The text does not match its encoding.

    ``named`` is true if the caller named the encoding, false if it is the default.
    """

    def __init__(self, message: str, named: bool = False) -> None:
        super().__init__(message)
        self.named = named


def known_encoding(name: str) -> str:
    """Return Python's name of a text encoding. Raises EncodingError if Python knows no such encoding."""
    # People write windows1252, Windows 1252 or WIN-1252 for cp1252.
    name = re.sub(r"^\s*win(?:dows)?[-_ ]?(\d+)\s*$", r"cp\1", name, flags=re.IGNORECASE | re.ASCII)
    try:
        found = codecs.lookup(name).name if name.isascii() and "\x00" not in name else ""
    except (LookupError, ValueError):
        found = ""
    if not _OF_TEXT.fullmatch(found):
        raise EncodingError(f"{name!a} is not a known encoding; common ones are utf-8, utf-16 and windows-1252", True)
    return found


def utf8(file: IO[bytes], encoding: str | None) -> IO[bytes]:
    """Return the content of a seekable file as UTF-8, from its beginning, without a byte-order mark.

    If the file has a byte-order mark, the mark decides the encoding. Otherwise the encoding is ``encoding``, or UTF-8
    if that is None. Text that is not in UTF-8 is converted while it is read; invalid bytes raise EncodingError. Text in
    UTF-8 is passed on unchecked: the reader of the rows checks it, because only that reader knows the line to name in
    an error.

    Also raises EncodingError if ``encoding`` is not a Unicode encoding, but the file is valid UTF-8 with characters
    outside ASCII. Text in an encoding that is not Unicode is almost never valid UTF-8 by chance, so ``encoding`` must
    be wrong. Reading the file with it would alter characters without notice.
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
    if named not in _UNICODE and (word := _utf8_word(file)) is not None:
        raise EncodingError(
            f"the file is valid UTF-8 (it has {word!r}); reading it as {encoding} would alter it. Leave the encoding "
            f"out. If the text really is {encoding}, convert it to UTF-8 first",
            True,
        )
    return cast(IO[bytes], io.BufferedReader(_RecodedFile(file, named), _READ_SIZE))


def _utf8_word(file: IO[bytes]) -> str | None:
    """Return a word with a character outside ASCII from the rest of a file.

    Return None if the rest has no such word, or is not valid UTF-8.

    The position in the file stays the same.
    """
    start, found, decoder = file.tell(), None, codecs.getincrementaldecoder("utf-8")()
    try:
        part: bytes | None = None
        while part != b"":
            part = file.read(_READ_SIZE)
            text = decoder.decode(part, final=not part)
            if found is None and not text.isascii() and (word := re.search(r"[^\s,;\"]*[^\x00-\x7f][^\s,;\"]*", text)):
                found = word[0][:40]
        return found
    except UnicodeDecodeError:
        return None
    finally:
        file.seek(start)


class _RecodedFile(io.RawIOBase):
    """A file that is converted to UTF-8 while it is read."""

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
    """Return the error if the text that begins on line ``line`` is not UTF-8; None if it is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        # Show the word around the invalid byte, so that a person can find it in the file.
        word = re.search(rb"[^\s,;\t\"]*\Z", raw[: error.start][-20:])
        rest = re.match(rb"[^\s,;\t\"]*", raw[error.start :][:20])
        seen = ((word[0] if word else b"") + (rest[0] if rest else b"")).decode("cp1252", "replace")
        return EncodingError(
            f"line {line} is not UTF-8: byte 0x{raw[error.start]:02X} (in Windows-1252 it would read {seen!r}). "
            "Save the file as UTF-8, or name its encoding"
        )
    return None
