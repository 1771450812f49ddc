"""Events of every version that was ever released, read as the newest. Pure.

The header ``ce_dataschema`` of an event ends in its version (``…/run-observed/1``). A change that an old reader or an
old event would break on makes a new version: it gets a number in VERSIONS, and an upcaster from the version before.
docs/reference/compatibility.md has the rules; tests/golden/events/ an event of each version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from everyrun.errors import EveryrunError

BASE = "https://everyrun.dev/schemas"

Fields = dict[str, msgspec.Raw]
"""The fields of an event's value, each as its JSON text: what an upcaster does not touch stays byte for byte."""

Upcaster = Callable[[Fields], Fields]

#: The version of each event type that is written now; 1 where the type is not named.
VERSIONS: dict[str, int] = {}

#: By event type and version: from the fields of that version to those of the next.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}

_fields = msgspec.json.Decoder(Fields)
_encode = msgspec.json.Encoder().encode


class TooNewError(EveryrunError):
    """The event was written by a newer Everyrun, which this one must not guess the meaning of."""


def version(kind: str) -> int:
    """The version in which events of this type are written."""
    return VERSIONS.get(kind, 1)


def dataschema(kind: str) -> str:
    """What ``ce_dataschema`` says of events of this type as they are written now."""
    return f"{BASE}/{kind}/{version(kind)}"


def upcast(headers: Sequence[tuple[str, bytes]], value: bytes) -> bytes:
    """The value as the newest version of its event has it; as it is, where it is of that version or says none.

    Raises TooNewError, and msgspec.DecodeError where an old value is not a JSON object.
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
        raise TooNewError(f"{kind} of version {number}; this Everyrun knows up to {version(kind)}: use a newer one")
    return tuple(UPCASTERS[kind, old] for old in range(int(number), version(kind)))
