"""Check if a part is ready. Each check returns None, or what the part waits for."""

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

#: For addresses without TLS. By default each client loads the system's certificates, which takes 30 ms.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def http(url: str) -> Ask:
    """Check by GET /readyz."""

    async def ask() -> str | None:
        try:
            async with httpx.AsyncClient(timeout=2, mounts=NO_PROXY, verify=_NO_TLS) as client:
                answer = await client.get(url + "/readyz")
        except httpx.TransportError as error:
            return describe(error)
        return None if answer.status_code == 200 else answer.text

    return ask


def kafka(settings: Settings, port: int) -> Ask:
    """Check by the cluster id. A plain connection comes first, because the client logs every refused one."""

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
    """Check by the database, which it creates if it is missing."""

    async def ask() -> str | None:
        try:
            await server.make_database()
        except POSTGRES_AWAY as error:
            return describe(error)
        return None

    return ask
