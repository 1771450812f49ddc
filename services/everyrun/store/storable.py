"""Make text storable in Postgres: text must not contain NUL, and jsonb neither NUL nor lone surrogates. Pure."""

from __future__ import annotations

import re

# Finds escaped NULs, escaped pairs of surrogates (which are kept) and escaped lone surrogates. Only an odd number of
# backslashes before the u makes an escape. If the number is even, each backslash is itself escaped, and a u0000 after
# them is plain text.
_UNSTORABLE = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\u(?:0000|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def storable_json(raw: bytes) -> bytes:
    """Return JSON text for a jsonb column: each escaped NUL or lone surrogate becomes U+FFFD."""
    # For speed: nearly all texts contain no \u at all, so the first test is enough.
    if b"\\u" not in raw or (b"\\u0000" not in raw and b"\\ud" not in raw and b"\\uD" not in raw):
        return raw
    return _UNSTORABLE.sub(_replacement, raw)


def storable_text(text: str) -> str:
    """Return text for a text column: each NUL becomes U+FFFD."""
    return text.replace("\x00", "\ufffd")


def _replacement(match: re.Match[bytes]) -> bytes:
    text = match.group(0)
    is_surrogate_pair = len(text) - len(match.group(1)) == 12
    return text if is_surrogate_pair else match.group(1) + rb"\ufffd"
