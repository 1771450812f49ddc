"""Each test fails with Faust as it is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers import aiokafka
from faust.types import TP

from everyrun.processor.faust_adapter import (
    MAX_RECORDS,
    InOrderConsumer,
    WholePolls,
    faust_app,
    next_fetch,
    sleep_until_arrival,
)
from everyrun.settings import Settings
from tests.records import logged

SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1")


def test_a_whole_poll_is_one_faust_record() -> None:
    records = {
        TP("everyrun.runs", 1): [logged("runs", 1, n) for n in (5, 6, 7)],
        TP("everyrun.batches", 1): [logged("batches", 1, 2)],
        TP("everyrun.runs", 0): [],
    }
    found = list(WholePolls().iterate(records))
    assert [tp for tp, _ in found] == [TP("everyrun.batches", 1), TP("everyrun.runs", 1)]
    assert [(r.offset, len(r.value)) for _, r in found] == [(2, 1), (7, 3)]


def test_the_next_fetch_is_limited_by_the_bytes_of_the_last() -> None:
    assert next_fetch(100, 100 * 500) == MAX_RECORDS, "small records: the limit of records"
    assert next_fetch(100, 100 << 20) == 4, "of 1 MiB each"
    assert next_fetch(1, 16 << 20) == 1, "a record over the limit is fetched all the same"
    assert next_fetch(5, 0) == MAX_RECORDS


async def test_faust_fetches_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Faust's own consumer: the first fetch is small, the next depends on the sizes seen."""
    requested: list[int] = []

    async def fetch(_self: Any, _consumer: Any, _active: Any, _timeout: Any, max_records: int) -> Any:
        requested.append(max_records)
        return {TP("everyrun.runs", 0): [logged("runs", 0, 1)._replace(value=bytes(1 << 20))]}

    monkeypatch.setattr(aiokafka.AIOKafkaConsumerThread, "_fetch_records", fetch)
    app = faust_app(SETTINGS)
    thread = app.consumer._thread
    for _ in range(2):
        await thread._fetch_records(None, set(), timeout=1.0, max_records=app.conf.broker_max_poll_records)
    assert requested == [200, 4]


def test_faust_is_configured_against_its_defaults() -> None:
    conf = faust_app(SETTINGS).conf
    # By default its web server listens on every address, and its timeouts stall a group for minutes.
    assert conf.web_enabled is False
    assert conf.broker_session_timeout <= 10
    assert conf.broker_rebalance_timeout <= 20
    assert conf.processing_guarantee.value == "at_least_once"
    assert conf.topic_allow_declare is False
    assert conf.ConsumerScheduler is WholePolls
    # Faust's own consumer commits one poll of a partition a second.
    assert faust_app(SETTINGS).transport.Consumer is InOrderConsumer


async def test_batches_and_runs_of_one_partition_go_to_one_worker() -> None:
    """With Faust's own assignor, which it uses only with standby replicas."""
    app = faust_app(SETTINGS)
    assert app.conf.table_standby_replicas > 0
    thread = app.consumer._thread
    consumer = thread._create_worker_consumer(app.transport)
    try:
        names = {SETTINGS.topic(name) for name in ("batches", "runs")}
        cluster = SimpleNamespace(partitions_for_topic=lambda _topic: set(range(8)))
        members = {f"worker_{n}": thread._assignor.metadata(names) for n in range(3)}
        found = thread._assignor.assign(cluster, members)
    finally:
        await consumer.stop()
    for worker, given in found.items():
        partitions = {topic: sorted(numbers) for topic, numbers in given.assignment}
        assert partitions[SETTINGS.topic("batches")] == partitions[SETTINGS.topic("runs")], worker
    assert len(found) == 3


async def test_an_idle_agent_sleeps_until_a_poll_arrives() -> None:
    """Through Faust's own stream: noack_take alone wakes up every ``within`` seconds."""
    waits: list[float | None] = []
    app = faust_app(SETTINGS)
    app.flow_control.resume()
    channel = app.channel()
    stream = app.stream(channel)
    original = stream.wait_for_stopped

    async def counted(*events: Any, timeout: float | None = None) -> Any:
        waits.append(timeout)
        return await original(*events, timeout=timeout)

    stream.wait_for_stopped = counted
    sleep_until_arrival(stream)
    taking = stream.noack_take(8, within=0.01)
    first = asyncio.create_task(anext(taking))
    await asyncio.sleep(0.2)
    assert waits == [None]
    for number in range(3):
        await channel.send(value=number)
    assert [event.value for event in await asyncio.wait_for(first, 5)] == [0, 1, 2]
    second = asyncio.create_task(anext(taking))
    await channel.send(value=3)
    assert [event.value for event in await asyncio.wait_for(second, 5)] == [3]
    await taking.aclose()
    await stream.stop()
