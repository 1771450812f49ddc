"""Asking a part whether it is ready: None, or what is in the way."""

from __future__ import annotations

import asyncio
import ssl

import httpx
from aiokafka.errors import KafkaError

from everyrun.embedded.part import Ask
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.state import NO_PROXY
from everyrun.log import topics
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY

#: For addresses without TLS. A context of its own for each request would load the system's authorities, in 30 ms.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def http(url: str) -> Ask:
    """By GET /readyz."""

    async def ask() -> str | None:
        try:
            async with httpx.AsyncClient(timeout=2, mounts=NO_PROXY, verify=_NO_TLS) as client:
                answer = await client.get(url + "/readyz")
        except httpx.TransportError as error:
            return describe(error)
        return None if answer.status_code == 200 else answer.text

    return ask


def kafka(settings: Settings, port: int) -> Ask:
    """By its cluster id; not before it listens, as the client logs every refused connection."""

    async def ask() -> str | None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await topics.cluster_id(settings)
        except (KafkaError, OSError) as error:
            return describe(error)
        return None

    return ask


def postgres(server: EmbeddedPostgres) -> Ask:
    """By its database, which is made where it is missing."""

    async def ask() -> str | None:
        try:
            await server.make_database()
        except POSTGRES_AWAY as error:
            return describe(error)
        return None

    return ask
