"""Find the files in a folder, and decide which of them to send.

Every file that is not sent is counted, with the reason.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from everyrun.cli.contents import BEGINNING, kind_of
from everyrun.cli.patterns import (
    EXCLUDED,
    Pattern,
    any_matches,
    check_matched,
    extension_of,
    folded,
    reason_of_file,
    reason_of_folder,
)
from everyrun.extend.reserved import EXTERNAL_ID_MAX

NO_TYPE = "without an extension, and of a type that is not recognised by its content"
NOT_REGULAR = "not a regular file"
LINKED_TWICE = "linked folders that are listed already"
LINKED_ABOVE = "links to a parent folder"
UNREADABLE = "cannot be read (--skip-unreadable)"


class Document(NamedTuple):
    """A file to send."""

    path: Path
    #: The path relative to the folder, as text; bytes that are not UTF-8 are written as \\xNN.
    shown: str
    id: str
    #: The file's name at Extend. If the file has no extension, the extension for its content is appended.
    name: str
    size: int


class Found:
    """The files of a folder: those to send, those that are left out, and those that cannot be read."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        #: The paths of files and folders that are left out, by reason.
        self.skipped: dict[str, list[str]] = {}
        #: The paths that cannot be read, each with the reason.
        self.broken: list[tuple[str, str]] = []

    def skip(self, reason: str, relative: str) -> None:
        """Count a path that is left out."""
        self.skipped.setdefault(reason, []).append(shown(relative))

    @property
    def skipped_count(self) -> int:
        """Return how many paths are left out."""
        return sum(map(len, self.skipped.values()))

    def leave_out_broken(self) -> None:
        """Treat the paths that cannot be read as left out (``--skip-unreadable``)."""
        for name, why in self.broken:
            self.skipped.setdefault(UNREADABLE, []).append(f"{name} ({why})")
        self.broken = []


def shown(path: str | Path) -> str:
    """Return a path as text; bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def same_content(documents: Sequence[Document]) -> list[list[Document]]:
    """Group the documents that have the same content, and return the groups. Only files of the same size are read."""
    by_size: dict[int, list[Document]] = {}
    for document in documents:
        by_size.setdefault(document.size, []).append(document)
    by_digest: dict[bytes, list[Document]] = {}
    for group in by_size.values():
        for document in group if len(group) > 1 else ():
            try:
                with document.path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
            except OSError:
                # The file can no longer be read. The upload will report that.
                continue
            by_digest.setdefault(digest, []).append(document)
    return [group for group in by_digest.values() if len(group) > 1]


def find(folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = (), empty_is_fine: bool = False) -> Found:
    """Find the files in a folder and its subfolders. Links to folders are followed, but each folder is read only once.

    Raises PatternError if a pattern matches nothing, unless ``empty_is_fine``: the files may come later.
    """
    return _Walk(folder, include, exclude).run(empty_is_fine)


class _Place(NamedTuple):
    """A folder to look through."""

    path: str
    relative: str
    #: The reason why none of the files in the folder is sent, or None. The files are counted under this reason.
    reason: str | None
    #: True if --include matches the folder or one above it.
    included: bool = False


class _Walk:
    def __init__(self, folder: Path, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._folder = str(folder)
        self._include = [Pattern("--include", pattern, self._folder) for pattern in include]
        self._exclude = [Pattern("--exclude", pattern, self._folder) for pattern in exclude]
        self._found = Found()
        self._seen: set[tuple[int, int]] = set()
        self._links: list[_Place] = []
        #: The real paths of excluded files and folders, which stay excluded even if they are found through a link.
        self._excluded: set[str] = set()
        self._unreadable: list[tuple[str, str]] = []

    def run(self, empty_is_fine: bool) -> Found:
        self._walk(_Place(self._folder, "", None))
        # Follow links last: a subfolder is then found under its own name, even if a link leads to it too.
        for link in self._links:
            self._follow(link)
        if not empty_is_fine:
            check_matched(shown(self._folder), (*self._include, *self._exclude))
        self._leave_out_excluded()
        self._found.documents.sort(key=lambda document: document.shown)
        self._found.broken.sort()
        for names in self._found.skipped.values():
            names.sort()
        return self._found

    def _leave_out_excluded(self) -> None:
        """Leave out the documents that were found through a link, but are excluded under their own path."""
        is_excluded = _Within(self._excluded)
        documents, self._found.documents = self._found.documents, []
        for document in documents:
            if is_excluded(str(document.path)):
                self._found.skipped.setdefault(EXCLUDED, []).append(document.shown)
            else:
                self._found.documents.append(document)
        for relative, why in self._unreadable:
            if not is_excluded(os.path.join(self._folder, relative)):
                self._found.broken.append((shown(relative or self._folder), why))

    def _leads_above(self, link: str) -> bool:
        """Return True if a link leads to the folder itself or to a parent of it."""
        target = os.path.realpath(link)
        return os.path.commonpath([os.path.realpath(self._folder), target]) == target

    def _follow(self, link: _Place) -> None:
        if self._leads_above(link.path):
            self._found.skip(LINKED_ABOVE, link.relative)
            return
        try:
            known = _identity(os.stat(link.path)) in self._seen
        except OSError as error:
            self._broken(link, error)
            return
        if known:
            self._found.skip(LINKED_TWICE, link.relative)
        else:
            self._walk(link)

    def _walk(self, start: _Place) -> None:
        # A list instead of recursion, because folders may be nested more deeply than function calls in Python.
        open_places = [start]
        while open_places:
            place = open_places.pop()
            try:
                if place.reason is None:
                    identity = _identity(os.stat(place.path))
                    if identity in self._seen:
                        self._found.skip(LINKED_TWICE, place.relative)
                        continue
                    self._seen.add(identity)
                with os.scandir(place.path) as entries:
                    open_places += [below for entry in entries for below in self._entry(entry, place)]
            except OSError as error:
                self._broken(place, error)

    def _broken(self, place: _Place, error: OSError) -> None:
        if place.reason is None:
            self._unreadable.append((place.relative, error.strerror or str(error)))

    def _entry(self, entry: os.DirEntry[str], place: _Place) -> Iterator[_Place]:
        """Yield a folder, and keep a link to a folder for later. Add a file to those to send or to those left out."""
        relative = f"{place.relative}/{entry.name}" if place.relative else entry.name
        matched = folded(relative) if self._include or self._exclude else ""
        excluded = any_matches(self._exclude, matched)
        included = any_matches(self._include, matched) or place.included
        this = _Place(entry.path, relative, place.reason, included)
        if excluded and not (entry.is_symlink() and self._leads_above(entry.path)):
            self._excluded.add(os.path.realpath(entry.path))
        try:
            if entry.is_dir():
                this = this._replace(reason=place.reason or reason_of_folder(entry.name, excluded))
                if not entry.is_symlink():
                    yield this
                elif this.reason:
                    self._found.skip(this.reason, relative)
                else:
                    self._links.append(this)
            elif reason := place.reason or reason_of_file(entry.name, excluded, bool(self._include) and not included):
                self._found.skip(reason, relative)
            else:
                self._document(entry, relative)
        except OSError as error:
            self._broken(this, error)

    def _document(self, entry: os.DirEntry[str], relative: str) -> None:
        """Add a file to the documents, unless its content rules it out. Raises OSError if it cannot be read."""
        found = entry.stat()
        if not stat.S_ISREG(found.st_mode):
            self._found.skip(NOT_REGULAR, relative)
            return
        with open(entry.path, "rb") as file:
            beginning = file.read(BEGINNING)
        if not beginning:
            self._unreadable.append((relative, "the file is empty"))
            return
        path, name = Path(entry.path), shown(entry.name)
        if not extension_of(entry.name):
            kind = kind_of(path, beginning)
            if kind is None:
                self._found.skip(NO_TYPE, relative)
                return
            name = f"{name}.{kind}"
        self._found.documents.append(Document(path, shown(relative), id_of_path(relative), name, found.st_size))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class _Within:
    """Test whether a path, after links are resolved, is one of the given real paths or lies below one of them."""

    def __init__(self, real_paths: set[str]) -> None:
        self._real_paths = real_paths
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> bool:
        if not self._real_paths:
            return False
        folder, name = os.path.split(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.realpath(folder)
        real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real, name)
        while real not in self._real_paths:
            above = os.path.dirname(real)
            if above == real:
                return False
            real = above
        return True


def id_of_path(relative: str) -> str:
    """Return the external id for a path: the path itself, or a hash and the path's end.

    The hash is used if the path is too long or not printable.
    """
    if len(relative) <= EXTERNAL_ID_MAX and relative.isprintable():
        return relative
    digest = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    printable = "".join(c if c.isprintable() else "_" for c in relative)
    return f"{digest}-{printable[-(EXTERNAL_ID_MAX - 17) :]}"
