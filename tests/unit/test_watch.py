"""A worker that stands still with work waiting ends itself; one that has a reason to wait does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from everyrun.health import Health
from everyrun.processor.metrics import Metrics
from everyrun.processor.stall_watchdog import Watch
from everyrun.settings import Settings

P = ("runs", 0)


class World:
    """A watch over one partition, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.acknowledged: dict[Any, int] = {P: 5, ("runs", 1): 9}
        self.mine = {P}
        self.gave_up: list[str] = []
        self.metrics = Metrics()
        self.feed = SimpleNamespace(filled=0, held_up=None)
        settings = Settings(stalled_after=60)
        self.watch = Watch(
            settings,
            self.metrics,
            Health(),
            self.feed,
            lambda: self.mine,
            lambda: self.acknowledged,
            self.gave_up.append,
            lambda: self.now,
        )

    def at(self, now: float, end: int | None, problem: str | None = None) -> list[str]:
        self.now = now
        self.watch.look(None if end is None else {P: end, ("runs", 1): 99}, problem)
        return self.gave_up


def test_it_ends_itself_when_records_wait_and_none_was_committed_for_too_long() -> None:
    world = World()
    assert not world.at(0, 7)
    assert not world.at(60, 7)
    (why,) = world.at(61, 7)
    assert why.startswith("2 records wait and none was committed for 61 s")


def test_progress_of_any_size_starts_the_clock_anew() -> None:
    world = World()
    world.at(0, 1000)
    for moment in range(50, 500, 50):
        world.acknowledged[P] += 1
        assert not world.at(moment, 1000)
    assert world.metrics.registry.get_sample_value("everyrun_processor_records_total", {"topic": "runs"}) == 9
    assert world.metrics.registry.get_sample_value("everyrun_processor_lag_records", {"topic": "runs"}) == 986


def test_it_waits_for_as_long_as_nothing_waits_or_something_is_away() -> None:
    world = World()
    for end, problem in ((5, None), (7, "the database can only be read"), (None, None)):
        start = world.now
        world.at(start, end, problem)
        assert not world.at(start + 1000, end, problem)
    # Back: the time starts now.
    assert not world.at(world.now + 59, 7)
    assert world.at(world.now + 2, 7)


def test_a_long_heal_is_progress_and_a_database_that_takes_nothing_in_is_away() -> None:
    world = World()
    world.at(0, 1000)
    for moment in range(50, 500, 50):
        world.feed.filled += 1
        assert not world.at(moment, 1000)
    world.feed.held_up = "DiskFullError: no space left"
    assert not world.at(5000, 1000)
    world.feed.held_up = None
    assert not world.at(5059, 1000)
    assert world.at(5061, 1000)


def test_partitions_of_other_workers_are_not_ours() -> None:
    world = World()
    world.mine = set()
    world.at(0, 7)
    assert not world.at(1000, 7)
