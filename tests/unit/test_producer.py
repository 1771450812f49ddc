"""The producer's timeouts and options, with a fake in place of aiokafka's producer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from everyrun.log import producer as producer_module
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.settings import Settings
from tests.conftest import eventually


class Kafka:
    """Accepts batches of one record, and acknowledges none until told to."""

    def __init__(self, **_options: Any) -> None:
        self.sent: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def create_batch(self) -> Any:
        room = iter([SimpleNamespace()])
        return SimpleNamespace(append=lambda **_: next(room, None), close=lambda: None)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[None]:
        self.sent.append(asyncio.get_running_loop().create_future())
        return self.sent[-1]


async def test_each_acknowledgement_gives_a_large_append_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_module, "AIOKafkaProducer", Kafka)
    async with Producer(Settings()) as producer:
        assert producer._client is not None
        client, kafka = producer._client, producer._client.kafka
        append = asyncio.create_task(producer.append([Record("runs", b"k", b"{}", [])] * 3))
        await eventually(lambda: len(kafka.sent) == 3, "all batches are handed over")
        (limit,) = client.timeouts
        for one in kafka.sent[:2]:
            before = limit.when()
            one.set_result(None)
            await asyncio.sleep(0)
            assert before is not None
            assert (limit.when() or 0) > before
        assert not append.done()
        kafka.sent[2].set_result(None)
        await append


def test_the_producer_waits_for_all_replicas_and_is_idempotent(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        producer_module, "AIOKafkaProducer", lambda **options: given.update(options) or SimpleNamespace()
    )
    Producer(Settings(kafka_bootstrap="127.0.0.1:1"))
    assert (given["acks"], given["enable_idempotence"]) == ("all", True)
    assert "transactional_id" not in given
