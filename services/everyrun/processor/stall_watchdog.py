"""End a stalled worker, so that it is restarted.

A worker is stalled if it acknowledges nothing for too long, although records wait and Kafka and Postgres are available.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from aiokafka.errors import KafkaError

from everyrun.health import Health
from everyrun.log.reading import Partition, end_offsets
from everyrun.processor.metrics import Metrics
from everyrun.settings import Settings
from everyrun.store.probe import Probe
from everyrun.telemetry import log

_log = log(__name__)
_EVERY = 5.0
_ANSWER_WITHIN = 5.0


class Feeding(Protocol):
    """The part of the feed that the watchdog reads."""

    backfilled: int
    blocked_by: str | None


class LastProgress(NamedTuple):
    """The state at the last progress: acknowledged offsets, number of backfilled records, and the time."""

    acknowledged: Mapping[Partition, int]
    backfilled: int
    at: float


def last_progress(
    last: LastProgress,
    acknowledged: Mapping[Partition, int],
    backfilled: int,
    lag: int,
    unavailable: bool,
    now: float,
) -> LastProgress:
    """Return ``last`` if the worker could make progress since then, but made none. Otherwise return the current state.

    The worker cannot make progress if no record waits, or if Postgres or Kafka is unavailable. This time does not count
    as a stall. Pure.
    """
    if unavailable or lag == 0 or backfilled != last.backfilled or dict(acknowledged) != dict(last.acknowledged):
        return LastProgress(dict(acknowledged), backfilled, now)
    return last


class StallWatchdog:
    """Watches the progress of one worker, and calls ``give_up`` if the worker stalls.

    ``assigned`` returns the partitions of the worker.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        health: Health,
        feed: Feeding,
        assigned: Callable[[], set[Partition]],
        acknowledged: Callable[[], Mapping[Partition, int]],
        give_up: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._feed = feed
        self._assigned = assigned
        self._acknowledged = acknowledged
        self._give_up = give_up
        self._clock = clock
        self._probe = Probe(settings, name="processor", writes=True)
        self._last = LastProgress({}, 0, clock())

    async def run(self, topics: tuple[str, ...]) -> None:
        """Check every few seconds, without end. Treat Kafka or Postgres as unavailable if it does not answer."""
        every = min(_EVERY, self._settings.stalled_after / 3)
        while True:
            ends, problem = await asyncio.gather(self._ends(topics), self._database_problem())
            self.check(ends, problem)
            await asyncio.sleep(every)

    def check(self, ends: Mapping[Partition, int] | None, database_problem: str | None) -> None:
        """Update the metrics, and give up if the worker is stalled. ``ends`` is None if Kafka did not answer."""
        mine = self._assigned()
        acknowledged = {p: offset for p, offset in self._acknowledged().items() if p in mine}
        self._count(acknowledged)
        lag = self._lag(mine, acknowledged, ends or {})
        now = self._clock()
        unavailable = ends is None or database_problem is not None or self._feed.blocked_by is not None
        self._last = last_progress(self._last, acknowledged, self._feed.backfilled, lag, unavailable, now)
        seconds = now - self._last.at
        if seconds > self._settings.stalled_after:
            self._give_up(
                f"stalled: {lag} records wait and none was committed for {seconds:.0f} s, "
                "though Kafka and Postgres are available"
            )

    def _count(self, acknowledged: Mapping[Partition, int]) -> None:
        before = self._last.acknowledged
        moved = False
        for (topic, number), offset in acknowledged.items():
            known = before.get((topic, number))
            if known is not None and offset > known:
                self._metrics.records.labels(topic).inc(offset - known)
                moved = True
        if moved:
            self._metrics.last_commit.set_to_current_time()

    def _lag(self, mine: set[Partition], acknowledged: Mapping[Partition, int], ends: Mapping[Partition, int]) -> int:
        by_topic: dict[str, int] = {}
        for partition in mine:
            lag = max(ends.get(partition, 0) - acknowledged.get(partition, 0), 0)
            by_topic[partition[0]] = by_topic.get(partition[0], 0) + lag
        for topic, lag in by_topic.items():
            self._metrics.lag.labels(topic).set(lag)
        return sum(by_topic.values())

    async def _ends(self, topics: tuple[str, ...]) -> Mapping[Partition, int] | None:
        """Return the end offset of each partition, or None if Kafka does not answer in time."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                return await end_offsets(self._settings, topics)
        except (KafkaError, OSError) as error:
            _log.warning("cannot read the end offsets of the log", error=f"{type(error).__name__}: {error}")
            return None

    async def _database_problem(self) -> str | None:
        """Check on a separate connection that the tables can be written. Return the problem, or None."""
        problem = await self._probe.problem()
        if problem is None:
            self._health.ready("writing")
        else:
            self._health.not_ready("writing", problem)
        return problem
