"""Upcast events: turn an event of any released version into an event of the newest version. Pure.

The header ``ce_dataschema`` of an event ends in its version (``…/run-observed/1``). A breaking change of an
event makes a new version, which needs a number in VERSIONS and an upcaster from the previous version.
docs/reference/compatibility.md has the rules; tests/golden/events/ holds an event of each version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from everyrun.errors import EveryrunError

BASE = "https://everyrun.dev/schemas"

Fields = dict[str, msgspec.Raw]
"""The fields of an event's value, each as JSON text, so that fields that no upcaster changes keep all bytes."""

Upcaster = Callable[[Fields], Fields]

#: The current version of each event type; 1 if the type is not listed.
VERSIONS: dict[str, int] = {}

#: By event type and version: the function that converts the fields of that version to those of the next version.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}

_fields = msgspec.json.Decoder(Fields)
_encode = msgspec.json.Encoder().encode


class TooNewError(EveryrunError):
    """The event was written by a newer version of Everyrun, so this version cannot know what the event means."""


def version(kind: str) -> int:
    """Return the version in which events of this type are written."""
    return VERSIONS.get(kind, 1)


def dataschema(kind: str) -> str:
    """Return the ``ce_dataschema`` of events of this type, in their current version."""
    return f"{BASE}/{kind}/{version(kind)}"


def upcast(headers: Sequence[tuple[str, bytes]], value: bytes) -> bytes:
    """Return an event's value, converted to the newest version of the event.

    If the headers name that version, or no version, the value is unchanged. Raises TooNewError if they name a later
    version. Raises msgspec.DecodeError if a value to be converted is not a JSON object.
    """
    for name, content in headers:
        if name == "ce_dataschema":
            steps = _steps(content)
            return _lift(value, steps) if steps else value
    return value


def _lift(value: bytes, steps: Sequence[Upcaster]) -> bytes:
    fields = _fields.decode(value)
    for step in steps:
        fields = step(fields)
    return _encode(fields)


@lru_cache(maxsize=256)
def _steps(content: bytes) -> tuple[Upcaster, ...]:
    base, _, number = content.decode("utf-8", "replace").rpartition("/")
    kind = base.rpartition("/")[2]
    if not number.isdecimal() or base != f"{BASE}/{kind}":
        return ()
    if int(number) > version(kind):
        raise TooNewError(f"{kind} has version {number}, but this Everyrun knows up to {version(kind)}: update it")
    return tuple(UPCASTERS[kind, old] for old in range(int(number), version(kind)))
