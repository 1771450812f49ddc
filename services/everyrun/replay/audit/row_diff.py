"""List the values in which two rows differ, down to single values inside JSON columns. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

#: Stands for a value that one side does not have.
ABSENT = object()


class Difference(msgspec.Struct, frozen=True):
    """A value in the live tables that differs from the value that follows from the log.

    ``column`` may be a path into JSON: ``run.stepRuns[0].status``. If only one side has the row, ``column`` is ``*``
    and the other side's value is None.
    """

    table: str
    key: str
    column: str
    live: Any
    log: Any


def rows_differ(
    table: str, key: str, live: Mapping[str, Any] | None, log: Mapping[str, Any] | None
) -> Iterator[Difference]:
    """Yield every difference between two rows. None stands for a missing row; values of type bytes are JSON text."""
    if live is None or log is None:
        yield Difference(table, key, "*", live and "a row", log and "a row")
        return
    for column in live:
        yield from _values(table, key, column, _plain(live[column]), _plain(log[column]))


def _plain(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, bytes) else value


def _values(table: str, key: str, path: str, live: Any, log: Any) -> Iterator[Difference]:
    if isinstance(live, dict) and isinstance(log, dict):
        for name in [*live, *(name for name in log if name not in live)]:
            yield from _values(table, key, f"{path}.{name}", live.get(name, ABSENT), log.get(name, ABSENT))
    elif isinstance(live, list) and isinstance(log, list):
        for index in range(max(len(live), len(log))):
            sides = (side[index] if index < len(side) else ABSENT for side in (live, log))
            yield from _values(table, key, f"{path}[{index}]", *sides)
    elif type(live) is not type(log) or live != log:
        yield Difference(table, key, path, as_json(live), as_json(log))


def as_json(value: Any) -> Any:
    """Convert a value to plain JSON types; an absent value becomes ``(absent)``."""
    if value is ABSENT:
        return "(absent)"
    return msgspec.to_builtins(value, str_keys=True)
