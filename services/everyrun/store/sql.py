"""SQL lives in ``.sql`` files, a statement under a line ``-- name: some_name``; Python calls the names."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: ([a-z_0-9]+)[ \t]*$", re.MULTILINE)


class Statements:
    """The statements of one file: ``sql["name"]`` is the text. Raises KeyError naming the file for an unknown name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        parts = _NAME.split(path.read_text(encoding="utf-8"))
        names = parts[1::2]
        if len(set(names)) != len(names):
            raise ValueError(f"{path}: a statement's name is used twice")
        self._texts = {name: text.strip() for name, text in zip(names, parts[2::2], strict=True)}

    def __getitem__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise KeyError(f"{self._path.name} has no statement {name!r}") from None

    def names(self) -> list[str]:
        """The names, in the file's order."""
        return list(self._texts)


def beside(module_file: str, name: str) -> Statements:
    """The statements of the file ``name`` that lies beside a module: ``beside(__file__, 'queue.sql')``."""
    return Statements(Path(module_file).with_name(name))
