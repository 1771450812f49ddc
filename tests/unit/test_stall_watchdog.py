"""A stalled worker ends itself; one that has a reason to wait does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from everyrun.health import Health
from everyrun.processor.metrics import Metrics
from everyrun.processor.stall_watchdog import StallWatchdog
from everyrun.settings import Settings

P = ("runs", 0)


class World:
    """A watchdog over one partition, with its own clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.acknowledged: dict[Any, int] = {P: 5, ("runs", 1): 9}
        self.mine = {P}
        self.gave_up: list[str] = []
        self.metrics = Metrics()
        self.feed = SimpleNamespace(backfilled=0, blocked_by=None)
        settings = Settings(stalled_after=60)
        self.watchdog = StallWatchdog(
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
        self.watchdog.check(None if end is None else {P: end, ("runs", 1): 99}, problem)
        return self.gave_up


def test_a_worker_that_commits_nothing_for_too_long_ends_itself() -> None:
    world = World()
    assert not world.at(0, 7)
    assert not world.at(60, 7)
    (why,) = world.at(61, 7)
    assert why.startswith("stalled: 2 records wait and none was committed for 61 s")


def test_any_progress_restarts_the_clock() -> None:
    world = World()
    world.at(0, 1000)
    for moment in range(50, 500, 50):
        world.acknowledged[P] += 1
        assert not world.at(moment, 1000)
    assert world.metrics.registry.get_sample_value("everyrun_processor_records_total", {"topic": "runs"}) == 9
    assert world.metrics.registry.get_sample_value("everyrun_processor_lag_records", {"topic": "runs"}) == 986


def test_no_record_waiting_or_an_outage_is_no_stall() -> None:
    world = World()
    for end, problem in ((5, None), (7, "the database can only be read"), (None, None)):
        start = world.now
        world.at(start, end, problem)
        assert not world.at(start + 1000, end, problem)
    # Available again: the clock starts now.
    assert not world.at(world.now + 59, 7)
    assert world.at(world.now + 2, 7)


def test_a_backfill_is_progress_and_a_full_disk_is_an_outage() -> None:
    world = World()
    world.at(0, 1000)
    for moment in range(50, 500, 50):
        world.feed.backfilled += 1
        assert not world.at(moment, 1000)
    world.feed.blocked_by = "DiskFullError: no space left"
    assert not world.at(5000, 1000)
    world.feed.blocked_by = None
    assert not world.at(5059, 1000)
    assert world.at(5061, 1000)


def test_partitions_of_other_workers_do_not_count() -> None:
    world = World()
    world.mine = set()
    world.at(0, 7)
    assert not world.at(1000, 7)
