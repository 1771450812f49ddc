"""Polling open batches: the whole list of a batch, and a Get of what no webhook told."""

from __future__ import annotations

import asyncio
import random
import time

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.extend.client import ExtendError
from everyrun.reconciler.gets import Gets, Outcome
from everyrun.reconciler.lists import Lists
from everyrun.reconciler.missing import Listed, missing, settled_before, unnamed
from everyrun.reconciler.schedule import Turn, after_failure, after_poll, first_turn
from everyrun.settings import Settings
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

_BATCHES_AT_ONCE = 4


class Polling:
    """Polls each open batch when its turn comes."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, lists: Lists, gets: Gets) -> None:
        self._settings = settings
        self._pool = pool
        self._lists = lists
        self._gets = gets
        self._turns: dict[str, Turn] = {}

    async def poll_due(self) -> None:
        """Poll each open batch whose turn it is. Raises asyncpg's and Kafka's errors; Extend's are a batch's own."""
        s = self._settings
        rows = await self._pool.fetch(_sql["open_batches"], s.poll_first_after, s.poll_for)
        now = time.monotonic()
        turns = self._turns
        self._turns = {
            row["batch_id"]: turns.get(row["batch_id"])
            or first_turn(now=now, every=s.poll_every, polled_ago=row["polled_ago"])
            for row in rows
        }
        gate = asyncio.Semaphore(_BATCHES_AT_ONCE)

        async def one(row: asyncpg.Record) -> None:
            async with gate:
                await self._turn(row)

        async with asyncio.TaskGroup() as group:
            for row in rows:
                if self._turns[row["batch_id"]].due <= now:
                    group.create_task(one(row))

    def hurry(self, batch_id: str) -> None:
        """Poll the batch next, if it is open: there is something to be had."""
        if batch_id in self._turns:
            self._turns[batch_id] = msgspec.structs.replace(self._turns[batch_id], due=0.0)

    async def _turn(self, row: asyncpg.Record) -> None:
        batch_id, every = row["batch_id"], self._settings.poll_every
        begun = self._turns[batch_id]
        jitter = random.random()  # noqa: S311
        try:
            found = await self.poll(batch_id, row["expected"], overdue=row["age"] > self._settings.overdue_after)
        except (ExtendError, msgspec.DecodeError) as error:
            _log.warning("a poll failed; the batch is polled again later", batch=batch_id, error=str(error))
            turn = after_failure(self._turns[batch_id], now=time.monotonic(), every=every, jitter=jitter)
        else:
            turn = after_poll(
                self._turns[batch_id],
                now=time.monotonic(),
                age=row["age"],
                every=every,
                settled=row["settled"],
                found=found,
                jitter=jitter,
            )
        # What made it urgent meanwhile, this poll may have been too early to list.
        hurried = self._turns[batch_id] is not begun
        self._turns[batch_id] = msgspec.structs.replace(turn, due=0.0) if hurried else turn

    async def poll(self, batch_id: str, expected: int, *, overdue: bool = False) -> int:
        """List the batch, Get what is missing, write it; how many runs were had.

        A run that cannot be had now is left for the next poll. Raises ExtendError where the list failed.
        """
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
        return sum(outcome is Outcome.HAD for outcome in outcomes.values())
