"""The fingerprint of a run's metadata: what a run of a registered batch is matched by. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import rfc8785

from everyrun.extend import reserved

#: Extend takes characters out of these tags (SDK 1.20.0, types/run_metadata.py): they come back other than they went.
_USAGE_TAGS = "extend:usage_tags"
#: Beyond this a JSON number is not one integer for everybody: RFC 8785 takes it for a double, as Extend does.
_SAFE = 2**53 - 1


def fingerprint(metadata: bytes) -> str | None:
    """SHA-256 of the metadata as RFC 8785 JSON, without Extend's usage tags and Everyrun's reserved key.

    None for what is no object, or cannot be written as RFC 8785 JSON: nothing is equal to that.
    """
    try:
        value = msgspec.json.decode(metadata)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            return None
        own = {key: _double(item) for key, item in value.items() if key not in (_USAGE_TAGS, reserved.KEY)}
        return hashlib.sha256(rfc8785.dumps(own)).hexdigest()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
        return None


def _double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_double(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _SAFE:
        return float(value)
    return value
