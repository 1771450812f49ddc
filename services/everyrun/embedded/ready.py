"""Make checks that test whether a part is ready. A check returns None if it is, otherwise what it waits for."""

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

#: For addresses without TLS. By default, each client would load the system's certificates, which takes 30 ms.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def http(url: str) -> Ask:
    """Return a check for a service: GET /readyz answers 200."""

    async def ask() -> str | None:
        try:
            async with httpx.AsyncClient(timeout=2, mounts=NO_PROXY, verify=_NO_TLS) as client:
                answer = await client.get(url + "/readyz")
        except httpx.TransportError as error:
            return describe(error)
        return None if answer.status_code == 200 else answer.text

    return ask


def kafka(settings: Settings, port: int) -> Ask:
    """Return a check for Kafka: the cluster id can be read.

    The check opens a plain connection first, because the Kafka client would log every connection that is refused.
    """

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
    """Return a check for Postgres: the database can be reached. The check creates the database if it is missing."""

    async def ask() -> str | None:
        try:
            await server.make_database()
        except POSTGRES_AWAY as error:
            return describe(error)
        return None

    return ask
