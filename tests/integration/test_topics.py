"""Live topics are created from the declaration and checked against it."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from everyrun.health import Health
from everyrun.log import topics
from everyrun.settings import Settings
from tests.conftest import eventually

pytestmark = pytest.mark.stack


async def _set(settings: Settings, topic: str, **config: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    names = {key.replace("_", "."): value for key, value in config.items()}
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic(topic), configs=names)])
    finally:
        await admin.close()

    async def applied() -> bool:
        config = (await topics.live(settings))[topic].config
        return all(config[name] == value for name, value in names.items())

    await eventually(applied, f"{topic} has {names}", 20)


async def test_topics_are_created_once_as_declared(settings: Settings) -> None:
    await topics.check(settings)
    live = await topics.live(settings)
    assert {name: topic.partitions for name, topic in live.items()} == {
        topic.name: topic.partitions for topic in topics.declared()
    }
    assert await topics.create(settings) == []


async def test_topics_of_another_prefix_are_ignored(settings: Settings) -> None:
    other = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "other."})
    assert await topics.live(other) == {}
    with pytest.raises(topics.TopicsError, match=r"topic t\w+\.other\.batches is missing"):
        await topics.check(other)


async def test_a_finite_retention_is_refused_naming_topic_setting_and_remedy(settings: Settings) -> None:
    await _set(settings, "runs", retention_ms="3600000", message_timestamp_type="LogAppendTime")
    health = Health("topics", "kafka")
    with pytest.raises(topics.TopicsError, match=r"topic t\w+\.runs: retention\.ms is 3600000 instead of -1"):
        await topics.check(settings)
    waiting = asyncio.create_task(topics.wait_until_valid(settings, health))
    await eventually(lambda: "retention.ms is 3600000" in health.waiting["topics"], "readyz says it", 20)
    # Fixed while the service waits.
    (runs,) = (topic for topic in topics.declared() if topic.name == "runs")
    await _set(settings, "runs", **{key.replace(".", "_"): value for key, value in runs.config.items()})
    await asyncio.wait_for(waiting, 20)
    assert health.waiting == {}


async def test_readyz_reports_an_unavailable_kafka() -> None:
    health = Health("topics", "kafka")
    nowhere = Settings(kafka_bootstrap="127.0.0.1:1")
    waiting = asyncio.create_task(topics.wait_until_valid(nowhere, health))
    await eventually(lambda: "KafkaConnectionError" in health.waiting["kafka"], "readyz says it", 20)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_the_cluster_id_is_stable(settings: Settings) -> None:
    first = await topics.cluster_id(settings)
    assert len(first) == 22
    assert await topics.cluster_id(settings) == first
