"""Add the reserved metadata key to inputs, and read it from runs. The key says which input a run belongs to.

Everyrun adds the key when it calls Extend, and Extend returns the key with each run. Everyrun removes it before people
see the metadata. The key counts towards Extend's limit of 10 KB of metadata per run.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

#: The reserved key. A caller's key that begins with PREFIX is refused.
KEY = "everyrun:input"
PREFIX = "everyrun:"

#: Maximum number of bytes of a run's metadata (SDK 1.20.0, RunMetadata), counted as compact UTF-8 JSON.
METADATA_MAX_BYTES = 10_240

#: Maximum length of an external id, in characters.
EXTERNAL_ID_MAX = 255


# Every caller in the workspace can write the reserved key, so limit its values: Postgres could not index a longer text,
# or store a greater number. Everyrun itself never writes such values.
_Text = Annotated[str, Meta(max_length=512)]
_Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Reserved(msgspec.Struct, frozen=True):
    """The value of the reserved key.

    ``input`` is the input id, and ``position`` the position of the input in its submission, from 1. Texts have at most
    512 characters, and numbers fit Postgres's int. A key with other values is not decoded.
    """

    installation: _Text
    input: _Text
    chunk: _Text
    attempt: _Number
    position: _Number


def mark(metadata: dict[str, Any], reserved: Reserved) -> dict[str, Any]:
    """Return the metadata to send to Extend: the caller's metadata and the reserved key."""
    return {**metadata, KEY: msgspec.to_builtins(reserved)}


def read(metadata: object) -> Reserved | None:
    """Return the value of the reserved key in a run's metadata, or None if the key is absent or malformed."""
    if not isinstance(metadata, dict):
        return None
    try:
        return msgspec.convert(metadata.get(KEY), Reserved)
    except msgspec.ValidationError:
        return None


def unmark(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata without the reserved key, as people see it."""
    return {key: value for key, value in metadata.items() if key != KEY}
