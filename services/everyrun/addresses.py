"""Judge addresses that somebody else chose: the origin of a URL, and whether an address is on the public internet.

Everyrun connects to such addresses (signed links, receivers of notifications) from inside its operator's network. So
it resolves the names itself, and checks the addresses to which it then connects.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import httpx

Address = IPv4Address | IPv6Address


class Origin(NamedTuple):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int


def origin(url: str) -> Origin | None:
    """Return the origin of a URL, or None if the URL is not http(s) or contains a user or a password."""
    try:
        parsed = httpx.URL(url)
        port = parsed.port or {"https": 443, "http": 80}.get(parsed.scheme)
    except (httpx.InvalidURL, ValueError, TypeError):
        return None
    if port is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        return None
    return Origin(parsed.scheme, parsed.host, port)


def is_public(address: str) -> bool:
    """Return True if an address is on the public internet.

    An IPv6 address that leads to an IPv4 address (mapped, 6to4, Teredo, NAT64) is judged by that IPv4 address.
    """
    found = as_address(address)
    if found is None:
        return False
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if int(found) >> 32 == _NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    site_local = isinstance(found, IPv6Address) and found.is_site_local
    return found.is_global and not (found.is_multicast or found.is_reserved or site_local)


#: The first 96 bits of addresses in 64:ff9b::/96. NAT64 sends them to the IPv4 address in the last 32 bits.
_NAT64 = 0x0064FF9B0000000000000000


def as_address(host: str) -> Address | None:
    """Return the host as an IP address, or None if it is a name. An IPv6 address may have brackets and a zone."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, from the system's resolver. Raises OSError if the host has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
