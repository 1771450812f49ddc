"""Decide by name which files of a folder or bucket are sent: patterns of the user, hidden files and types."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from everyrun.cli.contents import EXTENSIONS
from everyrun.errors import Invalid

#: Folders in which desktops, file servers and archivers keep deleted files or files of their own.
_TRASH = frozenset(
    {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx", "@eadir", "#recycle"}
)
_OF_THE_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
#: Endings of the names of unfinished downloads, and of the backups and automatic saves that editors make.
_UNFINISHED = ("~", ".swp", ".swo", ".part", ".partial", ".crdownload", ".download", ".filepart")

HIDDEN_FOLDER = "in a hidden folder or the trash"
HIDDEN = "hidden, a lock file, a backup, or an unfinished download"
OTHER_TYPE = "of a type that Extend does not accept"
EXCLUDED = "excluded (--exclude)"
NOT_INCLUDED = "not included (--include)"


class PatternError(Invalid):
    """A pattern of ``--include`` or ``--exclude`` matches no file and no folder, so it is probably mistyped."""


class Pattern:
    """A pattern of ``--include`` or ``--exclude``.

    A pattern with a slash before its end is a glob for the path relative to the folder. Any other pattern is a glob for
    that path or for the last name in that path. A path or name that is literally equal to the pattern matches too.

    A pattern may begin with ``/``, with ``./``, or with the path or name of the folder itself, and may end with a
    slash. Case makes no difference. Neither does it matter whether an accented letter is one Unicode character or two.
    """

    def __init__(self, option: str, given: str, folder: str) -> None:
        self.option, self.given = option, given
        self.has_matched = False
        plain = given.rstrip("/") or given
        inside = plain.lstrip("/") if plain.startswith("/") else os.path.normpath(plain)
        paths = [inside, inside.removeprefix("**/")]
        absolute, root = os.path.abspath(plain), os.path.abspath(folder)
        if absolute.startswith(root.rstrip("/") + "/"):
            paths.append(os.path.relpath(absolute, root))
        first, _, rest = inside.partition("/")
        if rest and first.casefold() == os.path.basename(root).casefold():
            paths.append(rest)
        self._paths = [folded(path) for path in paths]
        self._name = folded(plain) if "/" not in plain else None

    def matches(self, relative: str) -> bool:
        """Return True if the pattern matches a path in the folder, and remember that it did.

        ``relative`` is the path as ``folded`` returns it.
        """
        found = any(relative == path or fnmatchcase(relative, path) for path in self._paths)
        if not found and self._name is not None:
            name = relative.rpartition("/")[2]
            found = name == self._name or fnmatchcase(name, self._name)
        self.has_matched = self.has_matched or found
        return found


def folded(text: str) -> str:
    """Return a text without differences of case and of the form of accented letters."""
    return unicodedata.normalize("NFC", text.casefold())


def any_matches(patterns: Sequence[Pattern], relative: str) -> bool:
    """Return True if a pattern matches. Every pattern is tried, because each remembers whether it has ever matched."""
    found = [pattern.matches(relative) for pattern in patterns]
    return any(found)


def reason_of_folder(name: str, excluded: bool) -> str | None:
    """Return why all files of a folder are left out because of its name, or None."""
    if name.startswith(".") or name.casefold() in _TRASH:
        return HIDDEN_FOLDER
    return EXCLUDED if excluded else None


def extension_of(name: str) -> str:
    """Return the extension in lower case, or "" if the text after the last dot is not an extension ("Nr. 17")."""
    extension = os.path.splitext(name)[1][1:].lower()
    return extension if re.fullmatch(r"[a-z][a-z0-9]{0,9}|[0-9]+[a-z][a-z0-9]*", extension) else ""


def reason_of_file(name: str, excluded: bool, not_included: bool) -> str | None:
    """Return why a file is left out because of its name or the patterns, or None."""
    if name.startswith((".", "~$")) or name.casefold() in _OF_THE_SYSTEM:
        return HIDDEN
    if name.casefold().endswith(_UNFINISHED) or (name.startswith("#") and name.endswith("#")):
        return HIDDEN
    if excluded:
        return EXCLUDED
    if not_included:
        return NOT_INCLUDED
    extension = extension_of(name)
    return OTHER_TYPE if extension and extension not in EXTENSIONS else None


def check_matched(where: str, patterns: Iterable[Pattern]) -> None:
    """Raise PatternError if a pattern has matched nothing in the folder or bucket ``where``."""
    for pattern in patterns:
        if not pattern.has_matched:
            raise PatternError(
                f"{pattern.option} {os.fsencode(pattern.given).decode('utf-8', 'backslashreplace')!r} matches no file "
                f"or folder in {where}; nothing was sent. Write a name, or a path in that folder; * stands for any "
                "characters. A shell expands * unless it is in quotes"
            )
