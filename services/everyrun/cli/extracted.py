"""What was extracted, as a table: a row an input, a column a value."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from typing import IO, Any

from everyrun.submission.intake.columns import csv_line

Place = tuple[str, ...]
"""Where a value stands: the step's name, then a key a level."""


def values_of(extracted: dict[str, Any]) -> dict[Place, str]:
    """Return each value as text, by its place: of objects their members, of lists their JSON."""
    found: dict[Place, str] = {}

    def walk(place: Place, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk((*place, key), inner)
        elif isinstance(value, str):
            found[place] = value
        else:
            found[place] = "" if value is None else json.dumps(value, ensure_ascii=False)

    for step, value in extracted.items():
        walk((step or "extracted",), value)
    return found


def names_of(places: Sequence[Place], taken: Sequence[str]) -> list[str]:
    """Return a column's name for each place; no two are equal, and none is a name that is taken."""
    used = set(taken)
    names = []
    for place in places:
        plain = name = ".".join(place)
        number = 1
        while name in used:
            number += 1
            name = f"{plain} ({number})"
        used.add(name)
        names.append(name)
    return names


def write_table(
    rows: Iterable[tuple[list[str], dict[str, Any]]], header: Sequence[str], file: IO[str], bom: bool
) -> None:
    """Write a CSV of rows and what was extracted for each.

    Which columns there are is known after the last row: until then the rows wait in a file.
    """
    places: dict[Place, int] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as waiting:
        for row, extracted in rows:
            texts = {places.setdefault(place, len(places)): text for place, text in values_of(extracted).items()}
            # As JSON with escapes: a text may hold half a character, which no file can.
            waiting.write(json.dumps([row, list(texts.items())]) + "\n")
        waiting.seek(0)
        file.write("\ufeff" if bom else "")
        file.write(csv_line([*header, *names_of(list(places), header)]))
        for kept in waiting:
            row, cells = json.loads(kept)
            given = dict(cells)
            file.write(csv_line([*row, *(given.get(number, "") for number in range(len(places)))]))
