"""The documents in a folder: which are sent, which are not and why. Nothing is left out without being counted."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from everyrun.cli.contents import BEGINNING, EXTENSIONS, kind_of
from everyrun.extend.reserved import EXTERNAL_ID_MAX

#: Folders of desktops, file servers and archivers, where what was thrown away or made by them lies.
_TRASH = frozenset(
    {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx", "@eadir", "#recycle"}
)
_OF_THE_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "icon\r"})

HIDDEN_FOLDER = "in a hidden folder or the trash"
HIDDEN = "hidden, or a lock file of an open document"
OTHER_TYPE = "of a type that Extend does not take"
NO_TYPE = "without an extension, and of no type that is recognised by its content"
EXCLUDED = "excluded (--exclude)"
NOT_INCLUDED = "not included (--include)"
NOT_REGULAR = "not a regular file"
LINKED_TWICE = "linked folders that are in the list already"
LINKED_ABOVE = "links to a folder above"
UNREADABLE = "cannot be read (--skip-unreadable)"


class Document(NamedTuple):
    """A file to be sent."""

    path: Path
    #: Its path in the folder, as text; bytes that are not UTF-8 are written \\xNN.
    shown: str
    id: str
    #: Its name for Extend: with the extension that its content asks for, if it has none.
    name: str


class Found:
    """What lies in a folder."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        #: By reason, the paths of what is left out.
        self.skipped: dict[str, list[str]] = {}
        #: Paths that cannot be read, and why.
        self.broken: list[tuple[str, str]] = []

    def skip(self, reason: str, relative: str) -> None:
        """Count a path that is left out."""
        self.skipped.setdefault(reason, []).append(shown(relative))

    @property
    def skipped_count(self) -> int:
        """How many paths are left out."""
        return sum(map(len, self.skipped.values()))

    def leave_out_broken(self) -> None:
        """Count what cannot be read among what is left out."""
        for name, why in self.broken:
            self.skipped.setdefault(UNREADABLE, []).append(f"{name} ({why})")
        self.broken = []


def shown(path: str | Path) -> str:
    """Return a path as text; bytes that are not UTF-8 are written \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find(folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Found:
    """Look through a folder. Links to folders are followed, each folder once."""
    return _Walk(folder, include, exclude).run()


class _Place(NamedTuple):
    path: str
    relative: str
    #: Why nothing below is sent; its files are counted all the same.
    reason: str | None


class _Walk:
    def __init__(self, folder: Path, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._folder = str(folder)
        self._include = [pattern.casefold() for pattern in include]
        self._exclude = [pattern.casefold() for pattern in exclude]
        self._found = Found()
        self._seen: set[tuple[int, int]] = set()
        self._links: list[_Place] = []

    def run(self) -> Found:
        self._walk(_Place(self._folder, "", None))
        # Last, so that a folder within the folder is found under its own name.
        for link in self._links:
            self._follow(link)
        self._found.documents.sort(key=lambda document: document.shown)
        self._found.broken.sort()
        for names in self._found.skipped.values():
            names.sort()
        return self._found

    def _follow(self, link: _Place) -> None:
        target = os.path.realpath(link.path)
        root = os.path.realpath(self._folder)
        if os.path.commonpath([root, target]) == target:
            self._found.skip(LINKED_ABOVE, link.relative)
            return
        try:
            known = _identity(os.stat(target)) in self._seen
        except OSError as error:
            self._broken(link, error)
            return
        if known:
            self._found.skip(LINKED_TWICE, link.relative)
        else:
            self._walk(link)

    def _walk(self, start: _Place) -> None:
        # A list of its own: folders may be nested deeper than calls.
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
            self._found.broken.append((shown(place.relative or self._folder), error.strerror or str(error)))

    def _entry(self, entry: os.DirEntry[str], place: _Place) -> Iterator[_Place]:
        """Take a file, or yield a folder."""
        relative = f"{place.relative}/{entry.name}" if place.relative else entry.name
        this = _Place(entry.path, relative, place.reason)
        try:
            if entry.is_dir():
                this = this._replace(reason=place.reason or self._reason_of_folder(entry.name, relative))
                if not entry.is_symlink():
                    yield this
                elif this.reason:
                    self._found.skip(this.reason, relative)
                else:
                    self._links.append(this)
            elif reason := place.reason or self._reason_of_file(entry.name, relative):
                self._found.skip(reason, relative)
            else:
                self._document(entry, relative)
        except OSError as error:
            self._broken(this, error)

    def _reason_of_folder(self, name: str, relative: str) -> str | None:
        if name.startswith(".") or name.casefold() in _TRASH:
            return HIDDEN_FOLDER
        return EXCLUDED if _matches(relative, name, self._exclude) else None

    def _reason_of_file(self, name: str, relative: str) -> str | None:
        if name.startswith((".", "~$")) or name.casefold() in _OF_THE_SYSTEM:
            return HIDDEN
        if _matches(relative, name, self._exclude):
            return EXCLUDED
        if self._include and not _matches(relative, name, self._include):
            return NOT_INCLUDED
        extension = extension_of(name)
        return OTHER_TYPE if extension and extension not in EXTENSIONS else None

    def _document(self, entry: os.DirEntry[str], relative: str) -> None:
        """Take a file that can be read. Raises OSError."""
        if not stat.S_ISREG(entry.stat().st_mode):
            self._found.skip(NOT_REGULAR, relative)
            return
        with open(entry.path, "rb") as file:
            beginning = file.read(BEGINNING)
        if not beginning:
            self._found.broken.append((shown(relative), "the file is empty"))
            return
        path, name = Path(entry.path), shown(entry.name)
        if not extension_of(entry.name):
            kind = kind_of(path, beginning)
            if kind is None:
                self._found.skip(NO_TYPE, relative)
                return
            name = f"{name}.{kind}"
        self._found.documents.append(Document(path, shown(relative), id_of_path(relative), name))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _matches(relative: str, name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is of the path in the folder, or of the name alone if it has no slash. Capitals are as good."""
    return any(
        fnmatchcase(relative.casefold(), pattern) or ("/" not in pattern and fnmatchcase(name.casefold(), pattern))
        for pattern in patterns
    )


def extension_of(name: str) -> str:
    """Return the extension in small letters; none if what follows the last dot looks like no extension ("Nr. 17")."""
    extension = os.path.splitext(name)[1][1:].lower()
    return extension if re.fullmatch(r"[a-z][a-z0-9]{0,9}|[0-9]+[a-z][a-z0-9]*", extension) else ""


def id_of_path(relative: str) -> str:
    """Return an external id for a path: itself, or a hash and its end if it is too long or cannot be printed."""
    if len(relative) <= EXTERNAL_ID_MAX and relative.isprintable():
        return relative
    digest = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    printable = "".join(c if c.isprintable() else "_" for c in relative)
    return f"{digest}-{printable[-(EXTERNAL_ID_MAX - 17) :]}"
