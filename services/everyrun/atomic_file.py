"""Write files atomically: write a temporary file in the same folder, sync it to disk, and rename it."""

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
    """Open a temporary file for writing. It replaces ``path`` when the block ends without an error.

    Until then, and after an error, ``path`` is unchanged. If ``path`` is a symbolic link, its target is replaced. A
    path that is not a regular file (a pipe, /dev/stdout) is written directly.

    ``mode`` sets the permissions. By default, a file that exists keeps its permissions and owner, and a new file gets
    the permissions that the umask allows. With ``new``, raises FileExistsError if the file exists. Raises OSError if
    the file cannot be written.
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
                # Keep the owner of the file that is replaced. Only the superuser may do so for another user's file.
                with contextlib.suppress(OSError):
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if new:
            # If another process has made the file meanwhile, os.link fails. A rename would replace that file instead.
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
    """Open a text file as :func:`whole_binary` does. Its encoding is UTF-8, whatever the locale is.

    A lone surrogate, which UTF-8 cannot encode, is written as an escape sequence (``\\ud83d``), as in JSON.
    """
    with whole_binary(path, **more) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline=newline)
        yield text
        text.flush()
        # Detach the text wrapper. Otherwise it would close the file when it is deleted, but whole_binary still has to
        # sync the file.
        text.detach()


def write_text(path: Path, text: str, **more: Any) -> None:
    """Write a text file atomically, in UTF-8. Raises OSError."""
    with whole(path, **more) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes, **more: Any) -> None:
    """Write a file atomically. Raises OSError."""
    with whole_binary(path, **more) as file:
        file.write(content)


def _beside(place: Path, shown: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(prefix=f".{place.name[:100]}.", suffix=".part", dir=place.parent)
    except OSError as error:
        # Raise an error that names the path which the caller gave, and not the temporary file.
        raise type(error)(error.errno, error.strerror, str(shown)) from None


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable. Ignore errors, because some file systems cannot sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
