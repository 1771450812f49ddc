"""Extend's webhook signature, on the raw bytes.

Accepts and refuses as ``Webhooks.verify`` of the SDK 1.20.0 does (``extend_ai/wrapper/webhooks.py``), in the same
order of checks, for every header of ASCII text and every body of UTF-8. Other headers are refused and other bodies
are checked like any; the SDK raises errors of its own there.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

TIMESTAMP_HEADER = b"x-extend-request-timestamp"
SIGNATURE_HEADER = b"x-extend-request-signature"


def sign(timestamp: bytes, body: bytes, secret: bytes) -> bytes:
    """The signature Extend puts on a webhook: hex of HMAC-SHA256 over ``v0:<timestamp>:<body>``, 64 characters.

    ``secret`` is the whole signing secret, its ``wss_`` included.
    """
    return hmac.new(secret, b"v0:" + timestamp + b":" + body, hashlib.sha256).hexdigest().encode()


def verify(
    timestamp: bytes | None,
    signature: bytes | None,
    body: bytes,
    secrets: Sequence[bytes],
    now: float,
    max_age: int = 300,
    max_ahead: int = 60,
) -> str | None:
    """None where the webhook is Extend's and fresh; else the reason it is not.

    ``timestamp`` and ``signature`` are the two headers' bytes, ``now`` is Unix time in seconds, ``max_age`` and
    ``max_ahead`` are seconds, both inclusive. A ``max_age`` of 0 turns both checks of age off, as in the SDK.
    Any of the secrets may have signed; all are tried, each in constant time.
    """
    if not timestamp:
        return "missing timestamp"
    if not signature:
        return "missing signature"
    if not any(secrets):
        return "missing signing secret"
    if not timestamp.isascii() or not signature.isascii():
        return "header is not ASCII"
    if max_age > 0:
        try:
            # Python's int, like the SDK: surrounding space, a sign and single underscores are taken.
            age = int(now) - int(timestamp.decode("ascii"))
        except ValueError:
            return "timestamp is not an integer"
        if age > max_age:
            return "too old"
        if age < -max_ahead:
            return "in the future"
    return "invalid signature" if signer(timestamp, signature, body, secrets) is None else None


def signer(timestamp: bytes, signature: bytes, body: bytes, secrets: Sequence[bytes]) -> int | None:
    """Return the place, from 1, of the secret that signed, or None if none of them did.

    All are tried, each in constant time. Headers are ASCII.
    """
    found = None
    for place, secret in enumerate(secrets, 1):
        if secret and hmac.compare_digest(signature, sign(timestamp, body, secret)):
            found = found or place
    return found
