"""The one metadata key that is Everyrun's: it says which input a run belongs to, and comes back with the run.

It is put in when Extend is called and taken out again before anybody sees the metadata. It counts in Extend's
10 KB a run.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

#: The reserved key. A caller's own key that begins with PREFIX is refused.
KEY = "everyrun:input"
PREFIX = "everyrun:"

#: Extend takes at most this much metadata a run (SDK 1.20.0, RunMetadata), counted as compact UTF-8 JSON.
METADATA_MAX_BYTES = 10_240

#: An external id has at most so many characters.
EXTERNAL_ID_MAX = 255


# Anybody who can make a run in the workspace can write the key. What is longer or greater than Everyrun ever writes
# is not Everyrun's form: Postgres would refuse to index it, or to take it as an int.
_Text = Annotated[str, Meta(max_length=512)]
_Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Reserved(msgspec.Struct, frozen=True):
    """What the key holds. ``input`` is the input id, ``position`` the input's place in its submission, from 1.

    Texts have at most 512 characters, numbers fit Postgres's int: anything else is not decoded.
    """

    installation: _Text
    input: _Text
    chunk: _Text
    attempt: _Number
    position: _Number


def mark(metadata: dict[str, Any], reserved: Reserved) -> dict[str, Any]:
    """The metadata as Extend gets it: the caller's with the reserved key added."""
    return {**metadata, KEY: msgspec.to_builtins(reserved)}


def read(metadata: object) -> Reserved | None:
    """The reserved key of a run's metadata; None where it is absent or is not of Everyrun's form."""
    if not isinstance(metadata, dict):
        return None
    try:
        return msgspec.convert(metadata.get(KEY), Reserved)
    except msgspec.ValidationError:
        return None


def unmark(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata as people see it: without the reserved key."""
    return {key: value for key, value in metadata.items() if key != KEY}
