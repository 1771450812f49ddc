"""Sign webhooks as the specification "Standard Webhooks" says (standardwebhooks.com). Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

#: A secret begins with this prefix, which is not part of the key.
PREFIX = "whsec_"


def sign(secret: str, identifier: str, timestamp: int, body: bytes) -> str:
    """Return a signature for the header ``webhook-signature``. Raises ValueError if the secret is not base64.

    The secret may begin with ``whsec_``. ``timestamp`` is Unix time in seconds.
    """
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    content = f"{identifier}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def headers(identifier: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """Return the three headers of a webhook. It has one signature for each secret, so that secrets can be rotated."""
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, identifier, timestamp, body) for secret in secrets),
    }


def is_secret(text: str) -> bool:
    """Return True if the text is a secret: ``whsec_`` and 24 to 64 bytes in base64, as the specification demands."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith(PREFIX) and 24 <= len(key) <= 64
