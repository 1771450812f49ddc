"""The processor avoids Faust's traps: each test fails without the remedy."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers import aiokafka
from faust.types import TP

from everyrun.health import Health
from everyrun.log import producer as producer_module
from everyrun.log.producer import Producer
from everyrun.processor import app as processor_module
from everyrun.processor.app import Processor, faust_app, until_ended
from everyrun.processor.commits import InOrder
from everyrun.processor.fetching import MAX_RECORDS, next_count
from everyrun.processor.polls import PollRecord, WholePolls, joined
from everyrun.processor.publisher import pages
from everyrun.projection.apply import Applied
from everyrun.projection.feed import split
from everyrun.settings import Settings
from tests.records import Logged

SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1")
NOTHING = Applied({}, set(), set(), set(), set())


def logged(topic: str, partition: int, offset: int) -> Logged:
    return Logged(f"everyrun.{topic}", partition, offset, None, b"", [], 1)


class Event:
    """What noack_take gives: a whole poll, to be acknowledged by hand."""

    def __init__(self, order: list[Any], *records: Logged) -> None:
        self.value = list(records)
        self._order = order

    def ack(self) -> None:
        self._order.append(("ack", self.value[0].offset))


class Stream:
    def __init__(self, *takes: list[Event]) -> None:
        self._takes = takes

    async def take(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("take acknowledges what failed")
        yield

    async def noack_take(self, _max: int, within: float) -> Any:
        for events in self._takes:
            yield events


class Feed:
    def __init__(self, order: list[Any], fail: Exception | None = None) -> None:
        self._order = order
        self._fail = fail

    async def apply(self, polls: Any, _needed: Any) -> list[Applied]:
        if self._fail is not None:
            raise self._fail
        self._order.append(("apply", polls[0].first))
        return [NOTHING]


class Publisher:
    """Publishing the first poll takes longer than the second."""

    def __init__(self, order: list[Any]) -> None:
        self._order = order
        self.first_may_end = asyncio.Event()
        self._calls = 0

    async def publish(self, _applied: Any, _ends: Any) -> None:
        self._calls += 1
        call = self._calls
        if call == 1:
            await self.first_may_end.wait()
        self._order.append(("published", call))


def a_processor(feed: Any, publisher: Any) -> Processor:
    processor = Processor(SETTINGS, feed, publisher, Health())
    processor.informed.set()
    return processor


async def finished(processor: Processor) -> None:
    await asyncio.gather(*processor._finishing)


async def test_polls_are_acknowledged_in_order_after_they_are_published() -> None:
    order: list[Any] = []
    publisher = Publisher(order)
    processor = a_processor(Feed(order), publisher)
    takes = ([Event(order, logged("runs", 0, 0))], [Event(order, logged("runs", 0, 1))])
    await processor.agent(Stream(*takes))
    await asyncio.sleep(0)
    # Both are applied; nothing is acknowledged while the first is not published.
    assert order == [("apply", 0), ("apply", 1)]
    publisher.first_may_end.set()
    await finished(processor)
    assert order[2:] == [("published", 1), ("ack", 0), ("published", 2), ("ack", 1)]
    assert processor.acknowledged == {("runs", 0): 2}


async def test_nothing_is_applied_before_it_is_known_what_the_group_acknowledged() -> None:
    """At the first assignment and after each revocation: the poll that came first waits, and has what is needed."""

    class Needing(Feed):
        async def apply(self, polls: Any, needed: Any) -> list[Applied]:
            self._order.append(("needed", needed()["batches", 0]))
            return await super().apply(polls, needed)

    class Healer:
        async def assigned(self) -> None:
            await asyncio.sleep(0)
            assert not processor.informed.is_set()
            processor.acknowledged["batches", 0] = offset + 7

    order: list[Any] = []
    publisher = Publisher(order)
    publisher.first_may_end.set()
    processor = Processor(SETTINGS, Needing(order), publisher, Health())  # type: ignore[arg-type]
    app = faust_app(SETTINGS)
    processor_module.inform(app, Healer(), processor, Health())  # type: ignore[arg-type]
    for offset in (0, 1):
        await app.on_partitions_revoked.send(set())
        working = asyncio.create_task(processor.agent(Stream([Event(order, logged("runs", 0, offset))])))
        for _ in range(20):
            await asyncio.sleep(0)
        assert order == []
        await app.on_partitions_assigned.send(set())
        await working
        await finished(processor)
        assert order[:2] == [("needed", offset + 7), ("apply", offset)]
        order.clear()


async def test_what_stands_for_ever_ends_the_process_by_its_name_where_it_ends() -> None:
    """An error that nobody thought of in the watch would end the watch, and nobody would see a stall."""
    cancelled: list[str] = []

    async def stands() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("other")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("odd")

    async def returns() -> None:
        await asyncio.sleep(0)

    never, now = asyncio.Event(), asyncio.Event()
    assert await until_ended(never, {"the watch": fails(), "other": stands()}) == (
        "the watch ended by itself: KeyError: 'odd'"
    )
    assert await until_ended(never, {"other": stands(), "Faust": returns()}) == "Faust ended by itself"
    now.set()
    assert await until_ended(now, {"other": stands()}) is None
    await asyncio.sleep(0)
    assert cancelled == ["other"] * 3


async def test_an_error_without_an_answer_ends_the_process_and_acknowledges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(processor_module.os, "_exit", ended.append)
    order: list[Any] = []
    processor = a_processor(Feed(order, ValueError("?")), Publisher(order))
    await processor.agent(Stream([Event(order, logged("runs", 0, 0))]))
    assert (ended, order) == ([1], [])


def test_a_whole_poll_is_one_record_of_faust() -> None:
    records = {
        TP("everyrun.runs", 1): [logged("runs", 1, n) for n in (5, 6, 7)],
        TP("everyrun.batches", 1): [logged("batches", 1, 2)],
        TP("everyrun.runs", 0): [],
    }
    found = list(WholePolls().iterate(records))
    assert [tp for tp, _ in found] == [TP("everyrun.batches", 1), TP("everyrun.runs", 1)]
    assert [(r.offset, len(r.value)) for _, r in found] == [(2, 1), (7, 3)]


def test_polls_of_one_partition_that_follow_each_other_are_joined() -> None:
    values = [PollRecord([logged("runs", 0, n)]).value for n in (0, 1)] + [[logged("batches", 0, 4)]]
    polls = joined(values, "everyrun.")
    assert [(p.topic, p.partition, p.first, p.end) for p in polls] == [("batches", 0, 4, 5), ("runs", 0, 0, 2)]


async def test_polls_beyond_so_many_bytes_are_another_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_module, "_BYTES", 100)
    order: list[Any] = []
    publisher = Publisher(order)
    publisher.first_may_end.set()
    processor = a_processor(Feed(order), publisher)
    sizes = (40, 60, 1, 500, 99, 1)
    taken = [Event(order, logged("runs", n, 10 * n)._replace(value=b"x" * size)) for n, size in enumerate(sizes)]
    await processor.agent(Stream(taken))
    await finished(processor)
    assert [what for what in order if what[0] == "apply"] == [("apply", 0), ("apply", 20), ("apply", 30), ("apply", 40)]
    assert [at for what, at in order if what == "ack"] == [0, 10, 20, 30, 40, 50]


def test_a_reading_has_as_many_records_as_memory_bears() -> None:
    assert next_count(100, 100 * 500) == MAX_RECORDS, "small ones: what Kafka's client counts"
    assert next_count(100, 100 << 20) == 4, "of 1 MiB each"
    assert next_count(1, 16 << 20) == 1, "one larger than that is read all the same"
    assert next_count(5, 0) == MAX_RECORDS


async def test_faust_reads_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Faust's own consumer: the first reading is small, the next has what the last one's sizes allow."""
    asked: list[int] = []

    async def fetch(_self: Any, _consumer: Any, _active: Any, _timeout: Any, max_records: int) -> Any:
        asked.append(max_records)
        return {TP("everyrun.runs", 0): [logged("runs", 0, 1)._replace(value=bytes(1 << 20))]}

    monkeypatch.setattr(aiokafka.AIOKafkaConsumerThread, "_fetch_records", fetch)
    app = faust_app(SETTINGS)
    thread = app.consumer._thread
    for _ in range(2):
        await thread._fetch_records(None, set(), timeout=1.0, max_records=app.conf.broker_max_poll_records)
    assert asked == [200, 4]


def test_what_is_published_at_once_is_bounded_in_rows_and_in_bytes() -> None:
    assert [len(page) for page in pages((str(n), 10) for n in range(2500))] == [1000, 1000, 500]
    sizes = [("small", 1), ("large", 20 << 20), ("next", 5 << 20), ("fits", 3 << 20), ("over", 1)]
    assert list(pages(sizes)) == [["small"], ["large"], ["next", "fits"], ["over"]]
    assert list(pages([])) == []


def test_a_poll_that_cannot_be_stored_is_split_down_to_one_record() -> None:
    polls = joined([[logged("runs", 0, n) for n in range(5)], [logged("batches", 0, 0)]], "everyrun.")
    seen = []
    todo = [polls]
    while todo:
        group = todo.pop(0)
        parts = split(group)
        if len(parts) == 1:
            seen += [(group[0].topic, r.offset) for r in group[0].records]
        else:
            todo = parts + todo
    assert seen == [("batches", 0), *(("runs", n) for n in range(5))]


def test_faust_is_set_up_without_its_traps() -> None:
    conf = faust_app(SETTINGS).conf
    # Its web server listens everywhere by default; its default time-outs stall a group for minutes.
    assert conf.web_enabled is False
    assert conf.broker_session_timeout <= 10
    assert conf.broker_rebalance_timeout <= 20
    assert conf.processing_guarantee.value == "at_least_once"
    assert conf.topic_allow_declare is False
    assert conf.ConsumerScheduler is WholePolls
    # Its own consumer commits one poll of a partition a second.
    assert faust_app(SETTINGS).transport.Consumer is InOrder


async def test_a_batch_s_two_sides_go_to_one_worker_whatever_their_number() -> None:
    """By the assignor that Faust takes: without standbys it deals out the partitions one by one."""
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


def test_the_producer_waits_for_all_replicas_and_does_not_double(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        producer_module, "AIOKafkaProducer", lambda **options: given.update(options) or SimpleNamespace()
    )
    Producer(SETTINGS)
    assert (given["acks"], given["enable_idempotence"]) == ("all", True)
    assert "transactional_id" not in given
