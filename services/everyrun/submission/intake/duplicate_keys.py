"""Find keys that occur twice in a JSON object: decoding would silently keep only one of the values. Pure."""

from __future__ import annotations

import json
from typing import Any

from msgspec import UNSET

from everyrun.submission.intake.rows import QuickRow

_SPACE = b" \t\r\n"
#: The end of a key and the colon after it, once white space is removed. A text contains this at least once for each
#: key. It may contain it more often, because it also occurs in strings that begin with a colon or contain a quote
#: before a colon.
_KEY = b'":'


class _Object(dict[str, Any]):
    twice: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        found.twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return found


def duplicate_key(raw: bytes, decoded: Any) -> tuple[str, str] | None:
    """Return the field of a row in which a key occurs twice, and that key; None if no key occurs twice.

    The field is empty if the key occurs twice in the row itself. ``raw`` is valid JSON, and ``decoded`` is what msgspec
    decoded from it. Usually it is enough to count: if the text has no more keys than the decoded value, no key was
    lost. Otherwise the text is parsed again.
    """
    if raw.translate(None, _SPACE).count(_KEY) == _count(decoded):
        return None
    row = json.loads(raw, object_pairs_hook=_object, parse_int=_nothing, parse_float=_nothing)
    if isinstance(row, _Object) and row.twice is None:
        for field, value in row.items():
            if (key := _twice_in(value)) is not None:
                return field, key
    key = _twice_in(row)
    return None if key is None else ("", key)


def _nothing(_digits: str) -> None:
    return None


def _count(value: Any) -> int:
    """Return how many keys a decoded value has, including the keys of nested objects."""
    count, inner = 0, value
    if type(value) is QuickRow:
        inner = value.metadata
        count = 2 + (value.file.name is not UNSET) + (value.id is not None) + (inner is not None)
    if type(inner) is dict:
        count += len(inner)
        inner = inner.values()
    elif type(inner) is not list:
        return count
    for item in inner:
        if type(item) in (dict, list):
            count += _count(item)
    return count


def _twice_in(value: Any) -> str | None:
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, _Object):
            if value.twice is not None:
                return value.twice
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
    return None
