"""Poll open batches: list the runs of each batch, and fetch the runs whose state no webhook has reported."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.extend.client import ExtendError
from everyrun.reconciler.listed_runs import ListedRun, change_cutoff, is_known, runs_to_fetch, unidentified_runs
from everyrun.reconciler.run_fetcher import Outcome, RunFetcher
from everyrun.reconciler.run_lists import RunLists
from everyrun.reconciler.schedule import Turns, after_failure, after_poll, first_turn
from everyrun.settings import Settings
from everyrun.store.pool import SlowStatementError
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

_BATCHES_AT_ONCE = 4
#: All open batches are read once in this many seconds. The reads in between select only new batches: those that were
#: sent since the previous read or in the minute before it. The minute is added because the processor may apply a batch
#: up to a minute late.
_LOOK_AT_ALL_EVERY = 300.0
_APPLIED_LATE = timedelta(seconds=60)


class Poll(NamedTuple):
    """The result of polling a batch."""

    #: Number of runs that were fetched.
    found: int
    #: True if the batch waits only for a person. Each of its runs was then deleted, or is at rest with its state in the
    #: tables.
    resting: bool


class Polling:
    """Polls each open batch when it is due."""

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        lists: RunLists,
        fetcher: RunFetcher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._lists = lists
        self._fetcher = fetcher
        self._clock = clock
        self._turns = Turns()
        self._looked_at_all = float("-inf")
        self._known_up_to: datetime | None = None

    async def poll_due(self) -> None:
        """Poll each open batch that is due. Raises asyncpg's and Kafka's errors.

        An error of Extend is not raised: that batch is polled again later, and the other batches are still polled.
        """
        now = self._clock()
        await self._look_for_new(now)
        gate = asyncio.Semaphore(_BATCHES_AT_ONCE)

        async def one(batch_id: str) -> None:
            async with gate:
                await self._turn(batch_id)

        async with asyncio.TaskGroup() as group:
            for batch_id in list(self._turns.due(now)):
                group.create_task(one(batch_id))

    async def _look_for_new(self, now: float) -> None:
        """Schedule the first poll of each open batch that this process does not know yet.

        Usually read only the batches that were sent lately. Every five minutes read all open batches, to find those
        that the processor applied late, and to forget batches that have settled.
        """
        s = self._settings
        everything = now - self._looked_at_all >= _LOOK_AT_ALL_EVERY or self._known_up_to is None
        since = None if everything or self._known_up_to is None else self._known_up_to - _APPLIED_LATE
        rows = await self._pool.fetch(_sql["open_batches"], s.poll_first_after, s.poll_for, since)
        if everything:
            self._looked_at_all = now
            self._turns.keep({row["batch_id"] for row in rows})
        for row in rows:
            self._known_up_to = row["up_to"]
            if row["batch_id"] not in self._turns:
                turn = first_turn(now=now, every=s.poll_every, polled_ago=row["polled_ago"], due_in=row["due_in"])
                self._turns.set(row["batch_id"], turn)

    def hurry(self, batch_id: str) -> None:
        """Make an open batch due now, because a sweep has seen a change in it."""
        if batch_id in self._turns:
            self._turns.set(batch_id, msgspec.structs.replace(self._turns[batch_id], due=0.0))

    async def _turn(self, batch_id: str) -> None:
        every = self._settings.poll_every
        begun = self._turns[batch_id]
        jitter = random.random()  # noqa: S311
        try:
            row = await self._pool.fetchrow(_sql["open_batch"], batch_id, self._settings.poll_for)
            if row is None:
                self._turns.forget(batch_id)
                return
            overdue = row["age"] > self._settings.overdue_after
            found, resting = await self.poll(batch_id, row["expected"], overdue=overdue)
            now = self._clock()
            age, settled = row["age"], row["settled"]
            turn = after_poll(
                begun, now=now, age=age, every=every, settled=settled, found=found, jitter=jitter, resting=resting
            )
            await self._pool.execute(_sql["poll_again"], batch_id, turn.due - now, resting)
        except (ExtendError, msgspec.DecodeError, SlowStatementError) as error:
            _log.warning("a poll failed; retrying later", batch=batch_id, error=str(error))
            now = self._clock()
            turn = after_failure(begun, now=now, every=every, jitter=jitter)
            await self._pool.execute(_sql["poll_again"], batch_id, turn.due - now, False)
        # If ``hurry`` was called for the batch during this poll, the poll may have been too early to see the change. So
        # poll the batch again at once.
        hurried = self._turns[batch_id] is not begun
        self._turns.set(batch_id, msgspec.structs.replace(turn, due=0.0) if hurried else turn)

    async def poll(self, batch_id: str, expected: int, *, overdue: bool = False) -> Poll:
        """List the runs of a batch. Fetch those whose state is not in the tables, and write them to the log.

        A run that cannot be fetched now is left for the next poll. If the batch is ``overdue``, also fetch the runs in
        progress whose ids the tables do not have, to find out which inputs have no run. Raises ExtendError if the list
        cannot be read.
        """
        listed: dict[str, ListedRun] = {}
        cutoff = None
        async for page, at in self._lists.pages(batchId=batch_id, sortBy="createdAt", sortDir="asc"):
            # Ignore runs of other batches, in case Extend returns some in spite of the filter.
            listed.update((run.run_id, run) for run in page if run.batch_id in (None, batch_id))
            cutoff = cutoff or change_cutoff(at, self._settings.poll_grace)
        runs = list(listed.values())
        known = await self._fetcher.known(listed)
        wanted = runs_to_fetch(runs, known, cutoff)
        if overdue:
            wanted += unidentified_runs(runs, known, expected)
        unlisted = await self._pool.fetch(_sql["not_listed"], batch_id, list(listed))
        wanted += [ListedRun(row["run_id"], "not listed", batch_id) for row in unlisted]
        outcomes = await self._fetcher.fetch(wanted)
        present = [run_id for run_id in listed if outcomes.get(run_id, Outcome.FETCHED) is Outcome.FETCHED]
        await self._pool.execute(_sql["forget_gone"], present)
        await self._pool.execute(_sql["save_poll"], batch_id, len(runs), sum(not run.at_rest for run in runs))
        found = sum(outcome is Outcome.FETCHED for outcome in outcomes.values())
        if (wanted and found) or not all(run.at_rest for run in runs):
            return Poll(found, False)
        gone = {row["run_id"] for row in await self._pool.fetch(_sql["gone_runs"], batch_id)}
        nothing_new = all(run.run_id in gone or is_known(run, known.get(run.run_id, ())) for run in runs)
        return Poll(found, nothing_new and len(gone | listed.keys()) >= expected)
