"""Read named SQL statements from ``.sql`` files. Each statement follows a line ``-- name: some_name``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

_NAME = re.compile(r"^-- name: ([a-z_0-9]+)[ \t]*$", re.MULTILINE)


class Row(Protocol):
    """A row that a statement returned: ``row["status"]`` is the value of the column ``status``."""

    def __getitem__(self, column: str, /) -> Any: ...


#: The name and the file of each statement that was read, by the text of the statement.
_names: dict[str, str] = {}


def name_of(statement: str) -> str:
    """Return the name and the file of a statement, or its first words if it was not read from a file."""
    return _names.get(statement) or " ".join(statement.split())[:60]


class Statements:
    """The statements of one file: ``statements["name"]`` is the text.

    If the name is unknown, the text of the KeyError names the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        parts = _NAME.split(path.read_text(encoding="utf-8"))
        names = parts[1::2]
        if len(set(names)) != len(names):
            raise ValueError(f"{path}: a statement's name is used twice")
        self._texts = {name: text.strip() for name, text in zip(names, parts[2::2], strict=True)}
        _names.update({text: f"{name} ({path.name})" for name, text in self._texts.items()})

    def __getitem__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise KeyError(f"{self._path.name} has no statement {name!r}") from None

    def names(self) -> list[str]:
        """Return the names in the order of the file."""
        return list(self._texts)


def beside(module_file: str, name: str) -> Statements:
    """Return the statements of a file; ``name`` is relative to a module's folder: ``beside(__file__, "query.sql")``."""
    return Statements(Path(module_file).parent / name)
