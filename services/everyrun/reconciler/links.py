"""Fetch the payload behind a signed link: only from allowed origins, without redirects, within limits of size and time.

A setting allows origins by their host names, but somebody may make such a name lead to a machine in our own network
(DNS rebinding, a poisoned cache). So this module resolves the name itself, checks the address, and connects to exactly
that address. It refuses an address that is not public, unless the origin is written in the setting with a port, or with
an address in place of the name. So the origins ``http://127.0.0.1:9000`` and ``https://minio.internal:9000`` may lead
to a private address, but the origin ``https://minio.internal`` may not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import httpx

from everyrun.addresses import Origin, as_address, is_public, origin, resolve

Resolver = Callable[[str, int], Awaitable[list[str]]]


class LinkError(Exception):
    """A payload cannot be fetched. The text says why. It does not contain the link, which is a secret."""


def may_be_private(written: str) -> bool:
    """Return True if an origin, as it is written in the settings, may lead to an address that is not public.

    It may if it is written with its port, or with an address as its host.
    """
    found = origin(written)
    if found is None:
        return False
    # Look for the port in the text, because httpx drops a port that is the scheme's default.
    return written.rstrip("/").endswith(f":{found.port}") or as_address(found.host) is not None


class Links:
    """Fetches signed links from the given origins, and from no others.

    Plain http is used only for origins that are given with ``http://``.
    """

    def __init__(
        self,
        origins: Iterable[str],
        *,
        max_bytes: int,
        timeout: float,
        tries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        self._private: dict[Origin, bool] = {}
        for written in origins:
            found = origin(written)
            if found is not None:
                self._private[found] = self._private.get(found, False) or may_be_private(written)
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._tries = tries
        self._resolve = resolver
        # trust_env=False, because a proxy would resolve the name itself, and could connect to another address.
        # Connections are not kept alive, because httpx would reuse a connection for every name with the same address,
        # although the certificate was checked for only one of these names.
        self._http = httpx.AsyncClient(
            follow_redirects=False,
            timeout=timeout,
            transport=transport,
            trust_env=False,
            verify=httpx.create_ssl_context(),
            headers={"accept-encoding": "identity"},
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def fetch(self, url: str) -> bytes:
        """Return the body behind a link.

        Raises LinkError if the origin or the address is not allowed, the status is not 200, the body is too large, or
        the fetch times out. Timeouts, broken connections and the statuses 5xx and 429 are retried before LinkError is
        raised. A link is valid for an hour (SDK 1.20.0, wrapper/webhooks.py).
        """
        wanted = origin(url)
        if wanted is None or wanted not in self._private:
            raise LinkError("its origin is not in EVERYRUN_SIGNED_URL_ORIGINS")
        wait = 0.25
        for attempt in range(1, self._tries + 1):
            try:
                async with asyncio.timeout(self._timeout):
                    status, body = await self._once(url, wanted, await self._address(wanted, attempt))
                why = f"answered {status}"
                if status == 200:
                    return body
                if status < 500 and status != 429:
                    break
            except (httpx.HTTPError, OSError, TimeoutError) as error:
                why = type(error).__name__
            if attempt < self._tries:
                await asyncio.sleep(wait)
                wait *= 2
        raise LinkError(why)

    async def _address(self, wanted: Origin, attempt: int) -> str:
        """Return the address to connect to. Each try takes the next one of the name's addresses.

        Raises LinkError unless all addresses of the name are allowed. Raises OSError if there is none.
        """
        literal = as_address(wanted.host)
        found = [wanted.host.strip("[]")] if literal is not None else await self._resolve(wanted.host, wanted.port)
        if not found:
            raise OSError("no address")
        if not self._private[wanted] and not all(map(is_public, found)):
            raise LinkError(
                f"{wanted.host} has an address that is not public; if that is intended, write the origin with its "
                f"port in EVERYRUN_SIGNED_URL_ORIGINS: {wanted.scheme}://{wanted.host}:{wanted.port}"
            )
        return found[(attempt - 1) % len(found)]

    async def _once(self, url: str, wanted: Origin, address: str) -> tuple[int, bytes]:
        given = httpx.URL(url)
        host = given.netloc.decode("ascii")
        pinned = given.copy_with(host=address)
        # Check the certificate for the name, not for the address.
        extensions = {"sni_hostname": given.raw_host.decode("ascii")}
        async with self._http.stream("GET", pinned, headers={"host": host}, extensions=extensions) as response:
            if response.status_code != 200:
                return response.status_code, b""
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._max_bytes:
                    raise LinkError(f"more than {self._max_bytes} bytes")
            return 200, bytes(body)
