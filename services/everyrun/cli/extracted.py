"""Write extracted values as a CSV table, with one row per input and one column per value."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from typing import IO, Any

from everyrun.submission.intake.columns import csv_line

ValuePath = tuple[str, ...]
"""Path to a value: the step's name, then the keys of the nested objects."""


def flatten(extracted: dict[str, Any]) -> dict[ValuePath, str]:
    """Return the values as texts, keyed by path. Each member of an object is a separate value; a list becomes JSON."""
    texts: dict[ValuePath, str] = {}

    def walk(path: ValuePath, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk((*path, key), inner)
        elif isinstance(value, str):
            texts[path] = value
        else:
            texts[path] = "" if value is None else json.dumps(value, ensure_ascii=False)

    for step, value in extracted.items():
        walk((step or "extracted",), value)
    return texts


def column_names(paths: Sequence[ValuePath], reserved: Sequence[str]) -> list[str]:
    """Return a column name for each path. The names are unique, and none of them is in ``reserved``."""
    used = set(reserved)
    names = []
    for path in paths:
        base = name = ".".join(path)
        number = 1
        while name in used:
            number += 1
            name = f"{base} ({number})"
        used.add(name)
        names.append(name)
    return names


def write_table(
    rows: Iterable[tuple[list[str], dict[str, Any]]], header: Sequence[str], file: IO[str], bom: bool
) -> None:
    """Write the rows as CSV. In each line, the extracted values follow the row's own cells.

    The list of columns is complete only after the last row, so a temporary file keeps the rows until then.
    """
    columns: dict[ValuePath, int] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as buffer:
        for row, extracted in rows:
            texts = {columns.setdefault(path, len(columns)): text for path, text in flatten(extracted).items()}
            # json.dumps writes a lone surrogate as an escape. UTF-8 could not encode the surrogate itself.
            buffer.write(json.dumps([row, list(texts.items())]) + "\n")
        buffer.seek(0)
        file.write("\ufeff" if bom else "")
        file.write(csv_line([*header, *column_names(list(columns), header)]))
        for line in buffer:
            row, cells = json.loads(line)
            text_of = dict(cells)
            file.write(csv_line([*row, *(text_of.get(column, "") for column in range(len(columns)))]))
