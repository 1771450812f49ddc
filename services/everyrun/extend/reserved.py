"""Add the reserved metadata key to inputs, and read it from runs. It says which input a run belongs to.

It is added when Extend is called, returned with each run, and removed before people see the metadata. It counts towards
Extend's limit of 10 KB of metadata per run.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

#: The reserved key. A caller's key that begins with PREFIX is refused.
KEY = "everyrun:input"
PREFIX = "everyrun:"

#: Maximum metadata of a run (SDK 1.20.0, RunMetadata), counted as compact UTF-8 JSON.
METADATA_MAX_BYTES = 10_240

#: Maximum length of an external id, in characters.
EXTERNAL_ID_MAX = 255


# Every caller in the workspace can write this key, so limit its values. Postgres could not index a longer text or store
# a greater number, and Everyrun never writes one.
_Text = Annotated[str, Meta(max_length=512)]
_Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Reserved(msgspec.Struct, frozen=True):
    """The value of the key. ``input`` is the input id, ``position`` the input's position in its submission, from 1.

    Texts have at most 512 characters and numbers fit Postgres's int. Other values are not decoded.
    """

    installation: _Text
    input: _Text
    chunk: _Text
    attempt: _Number
    position: _Number


def mark(metadata: dict[str, Any], reserved: Reserved) -> dict[str, Any]:
    """Return the metadata to send to Extend: the caller's with the reserved key."""
    return {**metadata, KEY: msgspec.to_builtins(reserved)}


def read(metadata: object) -> Reserved | None:
    """Return the reserved key of a run's metadata, or None if it is absent or malformed."""
    if not isinstance(metadata, dict):
        return None
    try:
        return msgspec.convert(metadata.get(KEY), Reserved)
    except msgspec.ValidationError:
        return None


def unmark(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata without the reserved key, as people see it."""
    return {key: value for key, value in metadata.items() if key != KEY}
