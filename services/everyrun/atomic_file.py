"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_binary(path: Path, *, mode: int | None = None, new: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place at ``path`` if the block ends without an error.

    Until then, and after an error, ``path`` holds what it held before. A link is followed. What is no regular file (a
    pipe, /dev/stdout) is written directly. ``mode`` sets the permissions; by default they are those of the file that is
    replaced, whose owner is kept, or what the umask leaves. With ``new``, raises FileExistsError for a file that is
    there already. Raises OSError.
    """
    try:
        there: os.stat_result | None = os.stat(path)
    except FileNotFoundError:
        there = None
    if there is not None and new:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if there is not None and not stat.S_ISREG(there.st_mode):
        with path.open("wb") as direct:
            yield direct
        return
    place = Path(os.path.realpath(path))
    if mode is None:
        mode = stat.S_IMODE(there.st_mode) if there is not None else 0o666 & ~_umask()
    descriptor, name = _beside(place, path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if there is not None:
                # Its owner's, as before, where we may; the superuser writes files of others.
                with contextlib.suppress(OSError):
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if new:
            # A link fails where a rename would replace what came meanwhile.
            os.link(name, place)
        else:
            os.replace(name, place)
            name = ""
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
    _sync_folder(place.parent)


@contextmanager
def whole(path: Path, *, newline: str | None = "\n", **more: Any) -> Iterator[IO[str]]:
    """Open a text file as :func:`whole_binary` does, in UTF-8 whatever the locale says.

    A lone surrogate, which UTF-8 cannot hold, is written as its escape (``\\ud83d``), as JSON writes it.
    """
    with whole_binary(path, **more) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline=newline)
        yield text
        text.flush()
        # So that the end of the wrapper does not close the file, which is synced after this.
        text.detach()


def write_text(path: Path, text: str, **more: Any) -> None:
    """Write a text file whole, in UTF-8. Raises OSError."""
    with whole(path, **more) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes, **more: Any) -> None:
    """Write a file whole. Raises OSError."""
    with whole_binary(path, **more) as file:
        file.write(content)


def _beside(place: Path, shown: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(prefix=f".{place.name[:100]}.", suffix=".part", dir=place.parent)
    except OSError as error:
        # Named by what was asked for, not by a name that nobody chose.
        raise type(error)(error.errno, error.strerror, str(shown)) from None


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _sync_folder(folder: Path) -> None:
    """Make a rename last. Some file systems cannot sync a folder; the file itself is synced by then."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
