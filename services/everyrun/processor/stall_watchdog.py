"""Liveness means progress: a worker with records waiting and no commit for too long ends itself, to be started anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from aiokafka.errors import KafkaError

from everyrun.health import Health
from everyrun.log.reader import end_offsets
from everyrun.processor.metrics import Metrics
from everyrun.projection.offsets import Position
from everyrun.settings import Settings
from everyrun.store.probe import Probe
from everyrun.telemetry import log

_log = log(__name__)
_EVERY = 5.0
_ASK_WITHIN = 5.0


class Feeding(Protocol):
    """What the watch needs of the feed: how many records it has filled in, and what holds it up."""

    filled: int
    held_up: str | None


class Seen(NamedTuple):
    """What was acknowledged and filled in when last looked at, and since when there is nothing to complain of."""

    acknowledged: Mapping[Position, int]
    filled: int
    since: float


def judge(seen: Seen, acknowledged: Mapping[Position, int], filled: int, lag: int, away: bool, now: float) -> Seen:
    """The clock starts anew where records were acknowledged or filled in, none waits, or Postgres or Kafka is away.

    Pure.
    """
    if away or lag == 0 or filled != seen.filled or dict(acknowledged) != dict(seen.acknowledged):
        return Seen(dict(acknowledged), filled, now)
    return seen


class Watch:
    """Looks at the progress of one worker; ``assigned`` are its partitions, ``acknowledged`` how far they are."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        health: Health,
        feed: Feeding,
        assigned: Callable[[], set[Position]],
        acknowledged: Callable[[], Mapping[Position, int]],
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
        self._seen = Seen({}, 0, clock())

    async def run(self, topics: tuple[str, ...]) -> None:
        """Look every few seconds, for ever; what cannot be asked is away."""
        every = min(_EVERY, self._settings.stalled_after / 3)
        while True:
            ends, problem = await asyncio.gather(self._ends(topics), self._database_problem())
            self.look(ends, problem)
            await asyncio.sleep(every)

    def look(self, ends: Mapping[Position, int] | None, database_problem: str | None) -> None:
        """Take in how it stands; gives up where the worker stands still though nothing keeps it from working."""
        mine = self._assigned()
        acknowledged = {p: offset for p, offset in self._acknowledged().items() if p in mine}
        self._count(acknowledged)
        lag = self._lag(mine, acknowledged, ends or {})
        now = self._clock()
        away = ends is None or database_problem is not None or self._feed.held_up is not None
        self._seen = judge(self._seen, acknowledged, self._feed.filled, lag, away, now)
        if now - self._seen.since > self._settings.stalled_after:
            seconds = now - self._seen.since
            self._give_up(f"{lag} records wait and none was committed for {seconds:.0f} s, though nothing is away")

    def _count(self, acknowledged: Mapping[Position, int]) -> None:
        before = self._seen.acknowledged
        moved = False
        for (topic, number), offset in acknowledged.items():
            known = before.get((topic, number))
            if known is not None and offset > known:
                self._metrics.records.labels(topic).inc(offset - known)
                moved = True
        if moved:
            self._metrics.last_commit.set_to_current_time()

    def _lag(self, mine: set[Position], acknowledged: Mapping[Position, int], ends: Mapping[Position, int]) -> int:
        by_topic: dict[str, int] = {}
        for position in mine:
            behind = max(ends.get(position, 0) - acknowledged.get(position, 0), 0)
            by_topic[position[0]] = by_topic.get(position[0], 0) + behind
        for topic, behind in by_topic.items():
            self._metrics.lag.labels(topic).set(behind)
        return sum(by_topic.values())

    async def _ends(self, topics: tuple[str, ...]) -> Mapping[Position, int] | None:
        """Return where the log ends; None if Kafka does not say so in time."""
        try:
            async with asyncio.timeout(_ASK_WITHIN):
                return await end_offsets(self._settings, topics)
        except (KafkaError, OSError) as error:
            _log.warning("the log's ends are not known", error=f"{type(error).__name__}: {error}")
            return None

    async def _database_problem(self) -> str | None:
        """Return why the tables cannot be written now, found out over a connection of its own; None if they can."""
        problem = await self._probe.problem()
        if problem is None:
            self._health.ready("writing")
        else:
            self._health.not_ready("writing", problem)
        return problem
