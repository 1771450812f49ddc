"""A Kafka replaced by another one at the same address: a running processor must not apply its records."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from everyrun.embedded import process
from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.log import topics
from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.integration.conftest import service
from tests.integration.services import ServiceProcess
from tests.integration.tables import connect, contents
from tests.integration.test_backfill import are_as_undisturbed, say, until_acknowledged, worlds

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(600)]
__all__ = ["service"]


async def a_kafka(folder: Path, port: int, settings: Settings) -> subprocess.Popen[bytes]:
    """Start a new cluster at the port, and create the topics."""
    kafka = EmbeddedKafka(folder, port, free_port())
    kafka.prepare()
    started = process.start(kafka.command(), log=folder.with_suffix(".log"), env=os.environ)

    async def created() -> bool:
        assert started.poll() is None, "Kafka ended"
        try:
            await topics.create(settings)
        except Exception:
            return False
        return True

    await eventually(created, "Kafka answers and has the topics", 90)
    return started


async def test_a_replaced_kafka_ends_the_processor_and_is_refused(
    service: Any, database: str, postgres: Any, tmp_path: Path
) -> None:
    port = free_port()
    settings = Settings(kafka_bootstrap=f"127.0.0.1:{port}", postgres_dsn=database, topic_prefix="other.")
    kafka = await a_kafka(tmp_path / "one", port, settings)
    former = await topics.cluster_id(settings)
    try:
        where = {"EVERYRUN_KAFKA_BOOTSTRAP": settings.kafka_bootstrap, "EVERYRUN_TOPIC_PREFIX": "other."}
        first: ServiceProcess = await service("processor", **where).ready()
        (world,) = worlds(41, 1)
        await say(settings, world)
        await until_acknowledged(settings)
        tables = await connect(database)
        before = await contents(tables, "applied_offsets")

        kafka.kill()
        kafka.wait()
        kafka = await a_kafka(tmp_path / "other", port, settings)
        # More records than the former Kafka had, so that the offsets alone would not show the difference.
        await say(settings, [record for other in worlds(51, 3) for record in other])
        assert await asyncio.to_thread(first.process.wait, 120) != 0
        second: ServiceProcess = service("processor", **where)

        async def refused() -> bool:
            try:
                async with httpx.AsyncClient() as http:
                    return former in (await http.get(second.url + "/readyz")).text
            except httpx.TransportError:
                return False

        await eventually(refused, "readyz names the former cluster", 90)
        assert await second.status("/readyz") == 503
        assert await contents(tables, "applied_offsets") == before
        await tables.execute("drop schema everyrun cascade")
        await tables.close()
        await second.ready()
        await until_acknowledged(settings)
        await are_as_undisturbed(settings, postgres)
    finally:
        kafka.kill()
        kafka.wait()
