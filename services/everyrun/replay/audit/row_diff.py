"""Where two values of a column differ, down to the place inside its JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

#: Stands for a value that one side does not have.
ABSENT = object()


class Difference(msgspec.Struct, frozen=True):
    """A value that is not what the log says: in which table, row and column, what is live and what the log says.

    ``column`` may go on into JSON (``run.stepRuns[0].status``); it is '*' where the whole row is on one side only,
    and the other side is None.
    """

    table: str
    key: str
    column: str
    live: Any
    log: Any


def rows_differ(
    table: str, key: str, live: Mapping[str, Any] | None, log: Mapping[str, Any] | None
) -> Iterator[Difference]:
    """Every difference of a row; None is a side that does not have it. Columns of bytes are JSON text."""
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
        for at in range(max(len(live), len(log))):
            sides = (side[at] if at < len(side) else ABSENT for side in (live, log))
            yield from _values(table, key, f"{path}[{at}]", *sides)
    elif type(live) is not type(log) or live != log:
        yield Difference(table, key, path, shown(live), shown(log))


def shown(value: Any) -> Any:
    """A value as it is shown: plain JSON, what is absent as the word."""
    if value is ABSENT:
        return "(absent)"
    return msgspec.to_builtins(value, str_keys=True)
