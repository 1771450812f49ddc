"""What an answer to a batch POST, or the lack of one, means. Pure."""

from __future__ import annotations

import httpx
import msgspec

from everyrun.extend.client import read_error, retry_after


class Taken(msgspec.Struct, frozen=True):
    """Extend took the batch."""

    batch_id: str


class Rejected(msgspec.Struct, frozen=True):
    """Refused for good."""

    status: int
    code: str
    message: str


class Returned(msgspec.Struct, frozen=True):
    """Not taken, for now: nothing was made of it. ``wait`` in seconds; ``limited`` where Extend said 429."""

    reason: str
    wait: float | None = None
    limited: bool = False


class Blocked(msgspec.Struct, frozen=True):
    """Not taken, and it will not be before a person sees to it: the key, the credits, the permission."""

    reason: str


class Unclear(msgspec.Struct, frozen=True):
    """Taken, by its status, but without a batchId: a person must look."""

    reason: str


class InDoubt(msgspec.Struct, frozen=True):
    """It may have been taken, or not."""

    reason: str


Verdict = Taken | Rejected | Returned | Blocked | Unclear | InDoubt

#: No byte of the request was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)


def classify_failure(error: httpx.HTTPError) -> Verdict:
    """The verdict on a call that got no answer."""
    reason = f"{type(error).__name__}: {error}"
    return Returned(reason) if isinstance(error, _NOT_SENT) else InDoubt(reason)


def classify_response(response: httpx.Response) -> Verdict:
    """The verdict on an answer (error codes: docs.extend.ai, API reference, error handling)."""
    status = response.status_code
    if 200 <= status < 300:
        return _success(response.content)
    code, message = read_error(response.content)
    reason = f"{status} {code}: {message}"
    if status == 429:
        return Returned(reason, retry_after(response.headers), limited=True)
    if status in (401, 402, 403):
        return Blocked(reason)
    if 400 <= status < 500 and status not in (408, 409, 425):
        return Rejected(status, code, message)
    return InDoubt(reason)


def _success(content: bytes) -> Verdict:
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Not Extend's own answer, so it says nothing of whether the batch was made: evidence decides.
        return InDoubt("a success whose body is not JSON")
    batch_id = body.get("batchId") if isinstance(body, dict) else None
    if isinstance(batch_id, str) and 0 < len(batch_id) <= 255 and "\x00" not in batch_id:
        return Taken(batch_id)
    return Unclear("a success without a batchId")
