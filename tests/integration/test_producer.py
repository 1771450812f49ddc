"""Writing to a real Kafka: failures are raised in time, and do not affect later appends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from everyrun.embedded.kafka import EmbeddedKafka
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.log.cloudevents import Record
from everyrun.log.producer import MAX_RECORD_BYTES, Producer
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.conftest import read_topic

pytestmark = pytest.mark.stack


def small(name: str, key: str = "k") -> Record:
    return Record("runs", key.encode(), b'{"name": "%s"}' % name.encode(), [])


LARGE = Record("runs", b"k", b'{"name": "large", "x": "%s"}' % os.urandom(100_000).hex().encode(), [])


@pytest.fixture
async def narrow(settings: Settings) -> Settings:
    """Settings whose topic ``runs`` accepts only small records."""
    narrow = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "narrow."})
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(narrow.topic("runs"), 8, 1, topic_configs={"max.message.bytes": "10000"})])
    finally:
        await admin.close()
    return narrow


async def names(settings: Settings) -> list[str]:
    return [event["name"] for event, _ in await read_topic(settings, "runs")]


@pytest.mark.parametrize("beside", [[], [small("beside", "other")]], ids=["alone", "among others"])
async def test_an_append_after_a_refused_batch_succeeds(narrow: Settings, beside: list[Record]) -> None:
    async with Producer(narrow) as producer:
        await producer.append([small("before")])
        for _ in range(2):
            with pytest.raises(MessageSizeTooLargeError):
                await producer.append([LARGE, *beside])
            await producer.append([small("after")])
            await producer.append([small("after"), small("after")])
    found = await names(narrow)
    assert (found.count("before"), found.count("after"), found.count("large")) == (1, 6, 0)


async def test_a_record_over_the_limit_of_every_topic_is_not_sent(settings: Settings) -> None:
    async with Producer(settings) as producer:
        with pytest.raises(MessageSizeTooLargeError, match=str(MAX_RECORD_BYTES)):
            await producer.append([small("before"), Record("runs", b"k", bytes(MAX_RECORD_BYTES + 1), [])])
    assert await names(settings) == []


def broker(kafka: EmbeddedKafka) -> int:
    """The id of the broker's process."""
    config = str(kafka._folder).encode()
    found = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if _starts_java(path, config)]
    (one,) = found
    return int(one.name)


def _starts_java(cmdline: Path, config: bytes) -> bool:
    try:
        words = cmdline.read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"java") and any(config in word for word in words)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze the process, with its connections open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_an_append_times_out_if_kafka_does_not_answer(
    servers: tuple[EmbeddedKafka, EmbeddedPostgres], settings: Settings
) -> None:
    async def one(producer: Producer, *what: Record) -> float:
        began = time.monotonic()
        with pytest.raises(KafkaTimeoutError):
            await producer.append(what)
        return time.monotonic() - began

    async with Producer(settings, acknowledged_within=2) as producer:
        await producer.append([small("before")])
        with frozen(broker(servers[0])):
            sent = asyncio.create_task(one(producer, small("sent")))
            await asyncio.sleep(0.1)
            queued = [one(producer, small("queued")), one(producer, small("queued"), small("queued", "other"))]
            took = await asyncio.gather(sent, *queued)
            # The next one has a new client, which gets no answer either.
            took.append(await one(producer, small("queued")))
            assert max(took) < 5

        async def taken() -> bool:
            try:
                await producer.append([small("after")])
            except KafkaError:
                return False
            return True

        await eventually(taken, "Kafka takes records again")
    found = await names(settings)
    assert (found.count("before"), found.count("after")) == (1, 1)
    assert "queued" not in found, "what was given up came after all, behind what is newer"


async def test_the_producer_stops_even_if_kafka_does_not_answer(
    servers: tuple[EmbeddedKafka, EmbeddedPostgres], settings: Settings
) -> None:
    async with Producer(settings) as producer:
        await producer.append([small("before")])
        os.kill(broker(servers[0]), signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await producer.append([small("given up by its caller")])
            began = time.monotonic()
            await producer.__aexit__(None, None, None)
            assert time.monotonic() - began < 15
        finally:
            os.kill(broker(servers[0]), signal.SIGCONT)
