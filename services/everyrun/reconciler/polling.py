"""Polling open batches: the whole list of a batch, and a Get of what no webhook told."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime, timedelta

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.extend.client import ExtendError
from everyrun.reconciler.gets import Gets, Outcome
from everyrun.reconciler.lists import Lists
from everyrun.reconciler.missing import Listed, is_told, missing, settled_before, unnamed
from everyrun.reconciler.schedule import Turns, after_failure, after_poll, first_turn
from everyrun.settings import Settings
from everyrun.store.pool import SlowStatementError
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

_BATCHES_AT_ONCE = 4
#: All open batches are looked at this often, in seconds; between, those sent since, and this long before.
_LOOK_AT_ALL_EVERY = 300.0
_TOLD_LATE = timedelta(seconds=60)


class Polling:
    """Polls each open batch when its turn comes."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, lists: Lists, gets: Gets) -> None:
        self._settings = settings
        self._pool = pool
        self._lists = lists
        self._gets = gets
        self._turns = Turns()
        self._looked_at_all = float("-inf")
        self._known_up_to: datetime | None = None

    async def poll_due(self) -> None:
        """Poll each open batch whose turn it is. Raises asyncpg's and Kafka's errors; Extend's are a batch's own."""
        now = time.monotonic()
        await self._look_for_new(now)
        gate = asyncio.Semaphore(_BATCHES_AT_ONCE)

        async def one(batch_id: str) -> None:
            async with gate:
                await self._turn(batch_id)

        async with asyncio.TaskGroup() as group:
            for batch_id in list(self._turns.due(now)):
                group.create_task(one(batch_id))

    async def _look_for_new(self, now: float) -> None:
        """Give each batch that is new here its first turn.

        Only those sent lately are looked at each time. All are looked at now and then: the processor may tell late of
        a batch, and a batch that is settled is forgotten.
        """
        s = self._settings
        everything = now - self._looked_at_all >= _LOOK_AT_ALL_EVERY or self._known_up_to is None
        since = None if everything or self._known_up_to is None else self._known_up_to - _TOLD_LATE
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
        """Poll the batch next, if it is open: there is something to be had."""
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
            found, resting = await self._poll(batch_id, row["expected"], overdue=overdue)
            now = time.monotonic()
            age, settled = row["age"], row["settled"]
            turn = after_poll(
                begun, now=now, age=age, every=every, settled=settled, found=found, jitter=jitter, resting=resting
            )
            await self._pool.execute(_sql["poll_again"], batch_id, turn.due - now, resting)
        except (ExtendError, msgspec.DecodeError, SlowStatementError) as error:
            _log.warning("a poll failed; the batch is polled again later", batch=batch_id, error=str(error))
            now = time.monotonic()
            turn = after_failure(begun, now=now, every=every, jitter=jitter)
            await self._pool.execute(_sql["poll_again"], batch_id, turn.due - now, False)
        # What made it urgent meanwhile, this poll may have been too early to list.
        hurried = self._turns[batch_id] is not begun
        self._turns.set(batch_id, msgspec.structs.replace(turn, due=0.0) if hurried else turn)

    async def poll(self, batch_id: str, expected: int, *, overdue: bool = False) -> int:
        """List the batch, Get what is missing, write it; how many runs were had.

        A run that cannot be had now is left for the next poll. Raises ExtendError where the list failed.
        """
        found, _ = await self._poll(batch_id, expected, overdue=overdue)
        return found

    async def _poll(self, batch_id: str, expected: int, *, overdue: bool) -> tuple[int, bool]:
        """Poll, as above; also whether the batch only waits for a person: nothing in it is new or under way."""
        listed: dict[str, Listed] = {}
        before = None
        async for page, at in self._lists.pages(batchId=batch_id, sortBy="createdAt", sortDir="asc"):
            # A batch's list is its own: what a wrong answer mixes in is not looked at.
            listed.update((run.run_id, run) for run in page if run.batch_id in (None, batch_id))
            before = before or settled_before(at, self._settings.poll_grace)
        runs = list(listed.values())
        known = await self._gets.known(listed)
        wanted = missing(runs, known, before)
        if overdue:
            wanted += unnamed(runs, known, expected)
        unlisted = await self._pool.fetch(_sql["not_listed"], batch_id, list(listed))
        wanted += [Listed(row["run_id"], "not listed", batch_id) for row in unlisted]
        outcomes = await self._gets.fetch(wanted)
        here = [run_id for run_id in listed if outcomes.get(run_id, Outcome.HAD) is Outcome.HAD]
        await self._pool.execute(_sql["not_gone"], here)
        await self._pool.execute(_sql["keep_poll"], batch_id, len(runs), sum(not run.resting for run in runs))
        found = sum(outcome is Outcome.HAD for outcome in outcomes.values())
        if (wanted and found) or not all(run.resting for run in runs):
            return found, False
        gone = {row["run_id"] for row in await self._pool.fetch(_sql["gone_of"], batch_id)}
        told = all(run.run_id in gone or is_told(run, known.get(run.run_id, ())) for run in runs)
        return found, told and len(gone | listed.keys()) >= expected
