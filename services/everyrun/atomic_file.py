"""Write files atomically: to a temporary file in the same folder, which is synced and then renamed."""

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
    """Open a file for writing that replaces ``path`` if the block ends without an error.

    Until then, and after an error, ``path`` is unchanged. Links are followed. A path that is not a regular file (a
    pipe, /dev/stdout) is written directly. ``mode`` sets the permissions; by default a replaced file keeps its
    permissions and owner, and a new one follows the umask. With ``new``, raises FileExistsError if the file exists.
    Raises OSError.
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
                # Keep the owner if we may change it: the superuser may write files of other users.
                with contextlib.suppress(OSError):
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if new:
            # A link fails if another process has made the file meanwhile; a rename would replace it.
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
    """Open a text file as :func:`whole_binary` does, in UTF-8 in every locale.

    A lone surrogate, which UTF-8 cannot encode, is written as its escape (``\\ud83d``), as in JSON.
    """
    with whole_binary(path, **more) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline=newline)
        yield text
        text.flush()
        # Keep the file open when the wrapper ends, because it is synced after this.
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
        # Name the path that the caller gave, not the temporary file.
        raise type(error)(error.errno, error.strerror, str(shown)) from None


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Some file systems cannot sync a folder; the file itself is already synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
