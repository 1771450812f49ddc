"""Tables and a queue refuse topics that were recreated on the same cluster.

Otherwise the first records of the new topics would look like records that were applied already.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.connection import connection as kafka_options
from everyrun.projection.offsets import ForeignLogError
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission.app import _catch_up
from everyrun.submission.recovery.queue_recovery import QueueRecovery
from tests.conftest import eventually
from tests.integration.services import ServiceProcess
from tests.integration.tables import connect, contents, project
from tests.integration.test_backfill import say, until_acknowledged, worlds

pytestmark = pytest.mark.stack


async def recreate_topics(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(**kafka_options(settings))
    await admin.start()
    try:
        await admin.delete_topics([settings.topic(topic.name) for topic in topics.declared()])
    finally:
        await admin.close()

    async def made() -> bool:
        await topics.create(settings)
        return not topics.compare(topics.declared(), await topics.live(settings))

    await eventually(made, "the topics are there again", 60)


async def test_recreated_topics_are_refused_by_a_running_processor(service: Any, settings: Settings) -> None:
    """The worker ends. The next one reports the reason in readyz and its log, and skips no record."""
    first: ServiceProcess = await service("processor").ready()
    await say(settings, [record for world in worlds(21, 2) for record in world])
    await until_acknowledged(settings)
    database = await connect(settings.postgres_dsn.get_secret_value())
    before = await contents(database, "applied_offsets")
    await recreate_topics(settings)
    assert await asyncio.to_thread(first.process.wait, 90) != 0

    second: ServiceProcess = service("processor")

    async def refused() -> bool:
        try:
            async with httpx.AsyncClient() as http:
                return "the tables are ahead of the log" in (await http.get(second.url + "/readyz")).text
        except httpx.TransportError:
            return False

    await eventually(refused, "readyz reports that the tables are ahead", 60)
    assert await second.status("/readyz") == 503
    assert await second.status("/healthz") == 200
    assert "refusing this Kafka" in second.log.read_text()
    await say(settings, worlds(31, 1)[0][:5])
    assert await contents(database, "applied_offsets") == before

    # Follow the remedy in the message.
    await database.execute("drop schema everyrun cascade")
    await database.close()
    await second.ready()
    await until_acknowledged(settings)
    built = await connect(settings.postgres_dsn.get_secret_value())
    found = await contents(built, "applied_offsets")
    await built.execute("truncate applied_offsets, submissions, batches, results, decisions")
    await built.execute("truncate other_runs, unmatched_runs, deliveries, quarantine")
    second.terminate()
    await project(settings, settings.postgres_dsn.get_secret_value())
    assert await contents(built, "applied_offsets") == found
    await built.close()


async def test_a_queue_ahead_of_the_log_sends_nothing_and_reports_it(settings: Settings) -> None:
    async with await open_pool(settings, name="test") as pool:
        health, recovery = Health(), QueueRecovery(settings, pool)
        await _catch_up(recovery, health)
        await pool.execute("update everyrun_queue.log_position set next_offset = 7 where partition = 3")
        with pytest.raises(ForeignLogError, match="the queue is ahead of the log"):
            await _catch_up(recovery, health)
        assert "partition 3 of batches up to 7, but the partition ends at 0" in health.waiting["log_position"]
        with pytest.raises(ForeignLogError):
            await recovery.ensure_caught_up()
        await pool.execute("truncate everyrun_queue.log_position")
        await recovery.ensure_caught_up()
        await _catch_up(recovery, health)
        assert health.waiting == {}
        positions = await pool.fetch("select next_offset from everyrun_queue.log_position")
        assert {row["next_offset"] for row in positions} == {0}
