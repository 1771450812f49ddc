"""Send one request to a receiver: signed, without redirects, within limits of time and size, and only to addresses that
the settings allow.

A receiver's URL comes from a person, and its name can lead to any machine. So the connector resolves the name itself,
refuses addresses that are not public (unless EVERYRUN_NOTIFY_PRIVATE allows them), and connects to exactly the
addresses that it checked.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from msgspec import Struct

from everyrun import __version__, standard_webhooks
from everyrun.addresses import as_address, is_public, origin
from everyrun.extend import signature
from everyrun.notifier.catalog import Format
from everyrun.notifier.retrying import Outcome, retry_after
from everyrun.redact import describe, redact
from everyrun.settings import Settings
from everyrun.telemetry import log

_log = log(__name__)
#: Maximum number of bytes of an answer that are read, and of characters that are kept.
_READ, KEPT = 2048, 200


class Target(Struct, frozen=True):
    """A receiver's address, format and secrets. The first secret is the newest."""

    url: str
    format: Format
    secret: str
    previous_secret: str | None = None
    previous_until: datetime | None = None


class AddressError(OSError):
    """The receiver's address is not allowed. The text says why, and which setting allows it."""


def url_problem(url: str, settings: Settings) -> str | None:
    """Return why a URL cannot be a receiver's, or None if it can. Names are resolved only when a request is sent."""
    found = origin(url)
    if found is None or not url.isascii() or not url.isprintable() or len(url) > 2000:
        return "must be an absolute http(s) URL of at most 2,000 ASCII characters, without a user or a password"
    address = as_address(found.host)
    here = found.host == "localhost" or (address is not None and address.is_loopback)
    if found.scheme == "http" and not (here or settings.notify_http):
        return "must begin with https://, or EVERYRUN_NOTIFY_HTTP must be true"
    if (here or (address is not None and not is_public(str(address)))) and not settings.notify_private:
        return "leads to an address that is not public; to allow that, set EVERYRUN_NOTIFY_PRIVATE=true"
    return None


def signed_headers(target: Target, identifier: str, body: bytes, now: datetime) -> dict[str, str]:
    """Return the headers that prove who sent a request. Pure.

    A request in Everyrun's format is signed with the previous secret too, as long as that is valid. Extend's format has
    room for one signature: the previous secret signs until its time ends, so that the receiver has this time to accept
    both.
    """
    seconds = int(now.timestamp())
    previous = target.previous_secret if target.previous_until and now < target.previous_until else None
    if target.format == "extend":
        stamp = str(seconds)
        signed = signature.sign(stamp.encode(), body, (previous or target.secret).encode())
        return {signature.TIMESTAMP_HEADER.decode(): stamp, signature.SIGNATURE_HEADER.decode(): signed.decode()}
    secrets = [secret for secret in (target.secret, previous) if secret]
    return standard_webhooks.headers(identifier, seconds, body, secrets)


class _CheckedResolver(AbstractResolver):
    """Resolves names, and refuses a name that has an address that is not public."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Return the addresses of a host. Raises AddressError if one of them is not public."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(one["host"]) for one in found):
            raise AddressError(
                f"{host} has an address that is not public; to allow that, set EVERYRUN_NOTIFY_PRIVATE=true"
            )
        return found

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()


class Transport:
    """Sends requests to receivers. Use as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Transport:
        connector = aiohttp.TCPConnector(
            # Each receiver has a limit of its own, so that a slow one takes no connection from another.
            limit=0,
            # What aiohttp caches was checked. The cache also limits how many threads wait for a name server that hangs.
            resolver=None if self._settings.notify_private else _CheckedResolver(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._settings.notify_timeout),
            # A proxy would resolve the name itself, and could connect to another address.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": f"Everyrun/{__version__}"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, target: Target, identifier: str, body: bytes) -> Outcome:
        """Send a body to a receiver, signed with the present time, and return what became of it. Raises no error."""
        began = time.monotonic()
        problem = url_problem(target.url, self._settings)
        if problem is not None:
            return Outcome(error=f"the URL {problem}")
        headers = {"content-type": "application/json", **signed_headers(target, identifier, body, datetime.now(UTC))}
        try:
            async with self._session.post(target.url, data=body, headers=headers, allow_redirects=False) as response:
                try:
                    answer = await response.content.read(_READ)
                except (aiohttp.ClientError, OSError):
                    # The status alone counts.
                    answer = b""
                asked = retry_after(response.headers.get("retry-after"), time.time())
                return Outcome(
                    response.status, readable(answer, self._secrets(target)), "", time.monotonic() - began, asked
                )
        except TimeoutError:
            error = f"no answer within {self._settings.notify_timeout:g} s"
        except aiohttp.ClientConnectorError as failure:
            # aiohttp wraps the error of the resolver.
            cause = failure.os_error
            error = str(cause) if isinstance(cause, AddressError) else describe(cause)
        except (aiohttp.ClientError, OSError) as failure:
            error = describe(failure)
        except Exception as failure:
            # One receiver's address must not stop the others.
            _log.exception("cannot send to a receiver")
            error = describe(failure)
        return Outcome(error=error[:KEPT], seconds=time.monotonic() - began)

    @staticmethod
    def _secrets(target: Target) -> Sequence[str]:
        return [secret for secret in (target.secret, target.previous_secret) if secret]


def readable(answer: bytes, secrets: Sequence[str] = ()) -> str:
    """Return the first characters of an answer as one line of text, without secrets. Pure."""
    text = answer.decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "[hidden]")
    kept = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())
    return redact(kept)[:KEPT]
