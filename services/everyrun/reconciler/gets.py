"""Getting runs that a list told of, each state of a run once, into the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum
from typing import TypeVar

import asyncpg

from everyrun import telemetry
from everyrun.extend.client import Extend, ExtendError
from everyrun.failpoints import hit
from everyrun.log.producer import Log
from everyrun.reconciler.asking import ask
from everyrun.reconciler.missing import Known, Listed, is_told
from everyrun.store.pool import SlowStatementError
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

_AT_ONCE = 16
#: Before so many Gets it is looked up anew what webhooks have brought meanwhile.
_SLICE = 64
#: States remembered as asked for; the processor has told of the oldest long since.
_REMEMBERED = 100_000
#: A run that could not be had is asked for again after a while, that doubles up to so many seconds.
_PATIENCE_MOST = 3600.0
#: What Extend answers of a run that is no more.
_GONE = (404, 410)


_Value = TypeVar("_Value")


class Outcome(Enum):
    """What became of a Get."""

    HAD = "it is in the log"
    TOLD = "nothing new: a row has it, or it was asked for before"
    GONE = "there is no such run any more"
    NOT_NOW = "it could not be had, for now"


class Gets:
    """Asks for runs and writes what it is told to the log. What was asked for is not asked for again.

    A run that could not be had is asked for again ``patience`` seconds later at the earliest, twice that after the
    second time, at most an hour: one that can never be had costs little.
    """

    def __init__(self, pool: asyncpg.Pool, extend: Extend, log: Log, *, patience: float = 15.0) -> None:
        self._patience = patience
        self._failed: dict[str, tuple[int, float]] = {}
        self._pool = pool
        self._extend = extend
        self._log = log
        self._asked: dict[str, tuple[str, datetime | None]] = {}

    async def known(self, run_ids: Iterable[str]) -> dict[str, set[Known]]:
        """What the rows of these runs say."""
        known: dict[str, set[Known]] = {}
        for row in await self._pool.fetch(_sql["known_runs"], list(run_ids)):
            known.setdefault(row["run_id"], set()).add((row["status"], row["settled_at"]))
        return known

    async def fetch(self, wanted: Sequence[Listed]) -> dict[str, Outcome]:
        """Get the runs that no row tells of by then; what became of each.

        Raises Kafka's and asyncpg's errors. A run that cannot be had now may be asked for again.
        """
        outcomes = dict.fromkeys((run.run_id for run in wanted), Outcome.TOLD)
        new = [run for run in wanted if self._asked.get(run.run_id) != (run.status, run.updated_at)]
        for start in range(0, len(new), _SLICE):
            part = new[start : start + _SLICE]
            known = await self.known(run.run_id for run in part)
            outcomes.update(await self._fetch([run for run in part if not is_told(run, known.get(run.run_id, ()))]))
        return outcomes

    async def _fetch(self, runs: list[Listed]) -> dict[str, Outcome]:
        gate = asyncio.Semaphore(_AT_ONCE)
        outcomes: dict[str, Outcome] = {}

        async def one(run: Listed) -> None:
            async with gate:
                _keep(self._asked, run.run_id, (run.status, run.updated_at))
                outcome = outcomes[run.run_id] = await self.one(run.run_id, run.batch_id)
                if outcome is Outcome.NOT_NOW:
                    self._asked.pop(run.run_id, None)

        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(one(run))
        return outcomes

    def failures(self, run_id: str) -> int:
        """How often the run could not be had since it last could."""
        return self._failed.get(run_id, (0, 0.0))[0]

    async def one(self, run_id: str, batch_id: str | None) -> Outcome:
        """Get one run into the log; keep in mind where it is gone. Raises Kafka's and asyncpg's errors.

        NOT_NOW without a request where it failed a short time ago.
        """
        times, not_before = self._failed.get(run_id, (0, 0.0))
        if time.monotonic() < not_before:
            return Outcome.NOT_NOW
        try:
            record = await ask(self._extend, run_id)
        except ExtendError as error:
            if error.status not in _GONE:
                wait = min(self._patience * 2.0 ** min(times, 30), _PATIENCE_MOST)
                _keep(self._failed, run_id, (times + 1, time.monotonic() + wait))
                _log.warning("a run could not be had", run=run_id, error=str(error), times=times + 1, again_after=wait)
                return Outcome.NOT_NOW
            self._failed.pop(run_id, None)
            _log.warning("a run is gone: it was deleted upstream", run=run_id, batch=batch_id)
            try:
                await self._pool.execute(_sql["keep_gone"], run_id, batch_id)
            except SlowStatementError as slow:
                # Among others that are asked for at the same time: it costs none of them its turn.
                _log.warning("it could not be kept that a run is gone", run=run_id, error=str(slow))
                return Outcome.NOT_NOW
            return Outcome.GONE
        hit("polling.before_produce")
        await self._log.append([record])
        hit("polling.after_produce")
        self._failed.pop(run_id, None)
        return Outcome.HAD


def _keep(kept: dict[str, _Value], name: str, value: _Value) -> None:
    """Keep the value as the newest one; the oldest is forgotten where there are too many."""
    kept.pop(name, None)
    kept[name] = value
    while len(kept) > _REMEMBERED:
        del kept[next(iter(kept))]
