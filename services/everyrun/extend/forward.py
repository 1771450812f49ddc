"""Forward requests of other programs to Extend with Everyrun's key, within the request budget.

A forwarded request is sent once. Everyrun does not retry it, because the caller decides that.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping

import httpx

from everyrun.errors import Conflict, EveryrunError, NotFound
from everyrun.extend.budget import GET, RUN, WRITE
from everyrun.extend.client import Extend, request_headers, retry_after
from everyrun.redact import describe
from everyrun.settings import Settings

#: The share of the plan's rate that one process forwards. The rest stays free for Everyrun's own requests.
SHARE = 0.5
#: Longest time that a forwarded request waits for its turn in the shared budget, in seconds.
_TURN_WITHIN = 10.0
#: Seconds to pause a category after a 429 without a Retry-After header.
_PAUSE = 1.0
#: A path that is forwarded. Extend's ids need no other characters, and without ``%`` no path can hide a dot or a slash.
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+").fullmatch
#: Headers of a request that are forwarded. The key and the user agent are Everyrun's.
_KEPT = ("content-type", "content-length", "x-extend-api-version", "x-extend-workspace-id", "accept")
#: Headers of a response that the caller gets.
_RETURNED = (
    *("content-type", "content-encoding", "content-disposition", "retry-after", "x-ratelimit-reset"),
    *("x-extend-request-id", "location", "etag", "last-modified", "cache-control"),
)


class TooManyRequestsError(EveryrunError):
    """The callers of this process send more requests to Extend than their share of the rate allows."""


class NotForwardableError(NotFound):
    """The path is not one of Extend's."""


class KeyRefusedError(EveryrunError):
    """Extend refused Everyrun's own API key."""


class UnreachableError(EveryrunError):
    """Extend did not answer, and the request has had no effect."""


class OutcomeUnknownError(Conflict):
    """Extend did not answer, and it is not known if the request has had an effect."""


def category_of(method: str, path: str) -> str:
    """Return the category in which Extend counts a request (docs.extend.ai, general/rate-limits). Pure.

    Extend documents that starting a run counts as RUN, and reading as GET. Everything else counts as WRITE.
    """
    if method in ("GET", "HEAD"):
        return GET
    collection = path.removesuffix("/batch")
    return RUN if method == "POST" and collection.count("/") == 1 and collection.endswith("_runs") else WRITE


class Bucket:
    """A token bucket that holds as many requests as are allowed in one second, and at least one."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._size = max(rate, 1.0)
        self._left = self._size
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        """Take one request out of the bucket. Return False if it is empty."""
        now = self._clock()
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Forwarder:
    """Sends the requests of callers to Extend. Use it as an async context manager."""

    def __init__(self, settings: Settings, extend: Extend, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._extend = extend
        self._headers = request_headers(settings)
        self._workspace = settings.extend_workspace_id
        self._buckets = {category: Bucket(settings.rate() * SHARE) for category in (GET, WRITE, RUN)}
        self._http = httpx.AsyncClient(
            base_url=settings.extend_base_url,
            timeout=httpx.Timeout(settings.call_timeout, connect=min(10.0, settings.call_timeout)),
            transport=transport,
            limits=httpx.Limits(max_connections=64),
        )

    async def __aenter__(self) -> Forwarder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] = b"",
    ) -> httpx.Response:
        """Send a request once, and return the response with an unread body. The caller must close the response.

        Raises NotForwardableError, TooManyRequestsError, UnreachableError and KeyRefusedError: the request has had no
        effect. Raises OutcomeUnknownError for a request other than a GET whose answer did not arrive. Errors of reading
        ``content`` are passed through.
        """
        if not _PATH(path):
            raise NotForwardableError(f"there is no {method} {path[:200]}")
        category = category_of(method, path)
        await self._turn(category)
        kept = {name: value for name, value in (headers or {}).items() if name in _KEPT}
        if self._workspace:
            kept.pop("x-extend-workspace-id", None)
        request = self._http.build_request(
            method,
            f"{path}?{query}" if query else path,
            headers={**self._headers, **kept, "accept-encoding": "identity"},
            content=content,
        )
        self._extend.sent[category] += 1
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            raise UnreachableError(f"Extend cannot be reached: {describe(error)}") from None
        except httpx.HTTPError as error:
            if category == GET:
                raise UnreachableError(f"Extend did not answer: {describe(error)}") from None
            raise OutcomeUnknownError(
                f"Extend did not answer ({describe(error)}). The request may have had an effect: look before you "
                "send it again"
            ) from None
        if response.status_code == 429:
            pause = retry_after(response.headers)
            await self._extend.pause(category, _PAUSE if pause is None else pause)
        if response.status_code == 401:
            await response.aclose()
            raise KeyRefusedError("Extend refused Everyrun's own API key (401); see: everyrun doctor")
        return response

    async def _turn(self, category: str) -> None:
        if not self._buckets[category].take():
            raise TooManyRequestsError(f"too many {category} requests that Everyrun must send on to Extend")
        try:
            async with asyncio.timeout(_TURN_WITHIN):
                await self._extend.wait_for_turn(category)
        except TimeoutError:
            raise TooManyRequestsError(f"the budget for {category} requests to Extend is used up") from None


def returned_headers(response: httpx.Response) -> dict[str, str]:
    """Return the headers of a response from Extend that the caller gets. Pure."""
    return {name: response.headers[name] for name in _RETURNED if name in response.headers}
