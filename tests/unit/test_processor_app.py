"""The processor applies, publishes and acknowledges polls in order, and ends itself on errors it cannot handle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from everyrun.health import Health
from everyrun.processor import app as processor_module
from everyrun.processor.app import Processor, load_offsets_when_assigned, until_ended
from everyrun.processor.faust_adapter import faust_app
from everyrun.projection.apply import Applied
from everyrun.settings import Settings
from tests.records import Logged, logged

SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1")
NOTHING = Applied({}, set(), set(), set(), set())


class Event:
    """A whole poll, as noack_take yields it; the agent acknowledges it."""

    def __init__(self, order: list[Any], *records: Logged) -> None:
        self.value = list(records)
        self._order = order

    def ack(self) -> None:
        self._order.append(("ack", self.value[0].offset))


class Stream:
    def __init__(self, *takes: list[Event]) -> None:
        self._takes = takes

    def add_processor(self, _processor: Any) -> None:
        pass

    async def wait_for_stopped(self, *_: Any, **__: Any) -> None:
        pass

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
    """Publishes the first poll more slowly than the second."""

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
    processor.offsets_loaded.set()
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


async def test_nothing_is_applied_before_the_group_offsets_are_loaded() -> None:
    """At the first assignment and after each revocation, the first poll waits and then knows what is needed."""

    class Needing(Feed):
        async def apply(self, polls: Any, needed: Any) -> list[Applied]:
            self._order.append(("needed", needed()["batches", 0]))
            return await super().apply(polls, needed)

    class FakeBackfill:
        async def load_group_offsets(self) -> None:
            await asyncio.sleep(0)
            assert not processor.offsets_loaded.is_set()
            processor.acknowledged["batches", 0] = offset + 7

    order: list[Any] = []
    publisher = Publisher(order)
    publisher.first_may_end.set()
    processor = Processor(SETTINGS, Needing(order), publisher, Health())  # type: ignore[arg-type]
    app = faust_app(SETTINGS)
    load_offsets_when_assigned(app, FakeBackfill(), processor, Health())  # type: ignore[arg-type]
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


async def test_an_endless_task_that_ends_is_named() -> None:
    """Otherwise an unforeseen error would end the watchdog, and a stall would go unnoticed."""
    cancelled: list[str] = []

    async def endless() -> None:
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
    assert await until_ended(never, {"the stall watchdog": fails(), "other": endless()}) == (
        "the stall watchdog ended by itself: KeyError: 'odd'"
    )
    assert await until_ended(never, {"other": endless(), "Faust": returns()}) == "Faust ended by itself"
    now.set()
    assert await until_ended(now, {"other": endless()}) is None
    await asyncio.sleep(0)
    assert cancelled == ["other"] * 3


async def test_an_unexpected_error_ends_the_process_and_acknowledges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(processor_module.os, "_exit", ended.append)
    order: list[Any] = []
    processor = a_processor(Feed(order, ValueError("?")), Publisher(order))
    await processor.agent(Stream([Event(order, logged("runs", 0, 0))]))
    assert (ended, order) == ([1], [])


async def test_polls_over_the_byte_limit_start_another_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_module, "_BYTES", 100)
    order: list[Any] = []
    publisher = Publisher(order)
    publisher.first_may_end.set()
    processor = a_processor(Feed(order), publisher)
    sizes = (40, 60, 1, 500, 99, 1)
    fetched = [Event(order, logged("runs", n, 10 * n)._replace(value=b"x" * size)) for n, size in enumerate(sizes)]
    await processor.agent(Stream(fetched))
    await finished(processor)
    assert [what for what in order if what[0] == "apply"] == [("apply", 0), ("apply", 20), ("apply", 30), ("apply", 40)]
    assert [at for what, at in order if what == "ack"] == [0, 10, 20, 30, 40, 50]
