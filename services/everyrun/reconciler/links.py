"""Fetching the payload behind a signed link: from allowed origins only, without redirects, within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpx

Origin = tuple[str, str, int]


class LinkError(Exception):
    """The link gave no payload; the text says why."""


def origin(url: str) -> Origin | None:
    """Scheme, host and port of a URL; None where it is not a plain http(s) URL (credentials are not plain)."""
    try:
        parsed = httpx.URL(url)
        port = parsed.port or {"https": 443, "http": 80}.get(parsed.scheme)
    except (httpx.InvalidURL, ValueError, TypeError):
        return None
    if port is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        return None
    return parsed.scheme, parsed.host, port


class Links:
    """Fetches signed links. ``origins`` are the only ones it goes to; http is allowed where one of them says so."""

    def __init__(
        self,
        origins: Iterable[str],
        *,
        max_bytes: int,
        timeout: float,
        tries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._origins = {found for found in map(origin, origins) if found is not None}
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._tries = tries
        self._http = httpx.AsyncClient(
            follow_redirects=False, timeout=timeout, transport=transport, headers={"accept-encoding": "identity"}
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def fetch(self, url: str) -> bytes:
        """The body behind the link. Raises LinkError: another origin, not 200, too large, not in time.

        A 5xx, a 429 or a broken connection is tried again; anything else is final (the link lasts an hour: SDK
        1.20.0, wrapper/webhooks.py).
        """
        if origin(url) not in self._origins:
            raise LinkError("its origin is not in EVERYRUN_SIGNED_URL_ORIGINS")
        wait = 0.25
        for attempt in range(1, self._tries + 1):
            try:
                async with asyncio.timeout(self._timeout):
                    status, body = await self._once(url)
                why = f"answered {status}"
                if status == 200:
                    return body
                if status < 500 and status != 429:
                    break
            except (httpx.HTTPError, TimeoutError) as error:
                why = type(error).__name__
            if attempt < self._tries:
                await asyncio.sleep(wait)
                wait *= 2
        raise LinkError(why)

    async def _once(self, url: str) -> tuple[int, bytes]:
        async with self._http.stream("GET", url) as response:
            if response.status_code != 200:
                return response.status_code, b""
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._max_bytes:
                    raise LinkError(f"more than {self._max_bytes} bytes")
            return 200, bytes(body)
