"""A request's body on disk: counted, and unpacked if it came compressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import IO

from everyrun.submission.intake.parse import spool
from everyrun.submission.intake.text import UploadError

#: Bytes that are written, or unpacked to, at a time.
_PART = 1 << 20


class BodyTooLargeError(Exception):
    """The body, unpacked, has more bytes than are taken."""


class _Plain:
    """Writes a body as it is."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._left = most

    def take(self, part: bytes) -> None:
        """Write a part. Raises BodyTooLargeError."""
        self._left -= len(part)
        if self._left < 0:
            raise BodyTooLargeError
        self._file.write(part)

    def finish(self) -> None:
        """Say that the body has ended."""


class _Gzip(_Plain):
    """Writes what a gzip body unpacks to, a megabyte at a time: what it could unpack to is never held."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        super().__init__(file, most)
        self._unpacker = zlib.decompressobj(wbits=31)
        self._begun = False

    def take(self, part: bytes) -> None:
        """Unpack and write a part; a body may have several members. Raises BodyTooLargeError, UploadError."""
        try:
            while part:
                if self._unpacker.eof:
                    self._unpacker = zlib.decompressobj(wbits=31)
                self._begun = True
                super().take(self._unpacker.decompress(part, _PART))
                part = self._unpacker.unconsumed_tail or self._unpacker.unused_data
        except zlib.error as error:
            raise UploadError(f"the body is not valid gzip, as Content-Encoding says: {error}") from None

    def finish(self) -> None:
        """Write what is left. Raises UploadError if the body ends too early, and BodyTooLargeError."""
        while self._begun and not self._unpacker.eof:
            try:
                rest = self._unpacker.decompress(self._unpacker.unconsumed_tail, _PART)
            except zlib.error as error:
                raise UploadError(f"the body is not valid gzip, as Content-Encoding says: {error}") from None
            if not rest and not self._unpacker.eof:
                raise UploadError("the gzip body ends too early")
            super().take(rest)


async def receive(
    body: AsyncIterator[bytes], most: int, packed: bool, grown: Callable[[int], None] = lambda _size: None
) -> IO[bytes]:
    """Return a file with the whole body; ``grown`` is told its size now and then.

    The file has no name, so it is gone with the process, however that ends. Raises BodyTooLargeError, UploadError and
    what reading the body raises.
    """
    file = spool()
    try:
        writer = _Gzip(file, most) if packed else _Plain(file, most)
        held, size = [], 0
        async for part in body:
            held.append(part)
            size += len(part)
            if size >= _PART:
                await asyncio.to_thread(writer.take, b"".join(held))
                grown(file.tell())
                held, size = [], 0
        await asyncio.to_thread(writer.take, b"".join(held))
        await asyncio.to_thread(writer.finish)
        grown(file.tell())
    except BaseException:
        file.close()
        raise
    return file
