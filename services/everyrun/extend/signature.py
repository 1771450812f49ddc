"""Sign and verify Extend's webhooks on the raw bytes.

For ASCII headers and UTF-8 bodies, the result and the order of checks are those of ``Webhooks.verify`` in the SDK
1.20.0 (``extend_ai/wrapper/webhooks.py``). For other headers and bodies, the SDK raises other errors. Here, a header
that is not ASCII is refused, and a body that is not UTF-8 is verified like any other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

TIMESTAMP_HEADER = b"x-extend-request-timestamp"
SIGNATURE_HEADER = b"x-extend-request-signature"


def sign(timestamp: bytes, body: bytes, secret: bytes) -> bytes:
    """Return Extend's signature of a webhook: hex of HMAC-SHA256 over ``v0:<timestamp>:<body>``, 64 characters.

    ``secret`` is the whole signing secret, including ``wss_``.
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
    """Return None if the webhook is from Extend and fresh, or else the reason why it is refused.

    ``timestamp`` and ``signature`` are the bytes of the two headers. ``now`` is Unix time in seconds. A webhook may
    be at most ``max_age`` seconds old, and at most ``max_ahead`` seconds in the future. A ``max_age`` of 0 turns both
    checks off, as in the SDK. Any of the secrets may have signed the webhook: all are tried, each in constant time.
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
            # Use Python's int(), as the SDK does: it accepts surrounding spaces, a sign and single underscores.
            age = int(now) - int(timestamp.decode("ascii"))
        except ValueError:
            return "timestamp is not an integer"
        if age > max_age:
            return "too old"
        if age < -max_ahead:
            return "in the future"
    return "invalid signature" if signer(timestamp, signature, body, secrets) is None else None


def signer(timestamp: bytes, signature: bytes, body: bytes, secrets: Sequence[bytes]) -> int | None:
    """Return the number, from 1, of the secret that signed, or None. Headers must be ASCII.

    All secrets are tried, each in constant time.
    """
    found = None
    for place, secret in enumerate(secrets, 1):
        if secret and hmac.compare_digest(signature, sign(timestamp, body, secret)):
            found = found or place
    return found
