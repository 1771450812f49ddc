"""Sweeping a workflow's runs, the last changed first: for batches nobody knows, and for what became of settled runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.extend.client import ExtendError
from everyrun.reconciler.gets import Gets, Outcome
from everyrun.reconciler.lists import Lists
from everyrun.reconciler.missing import Listed, missing, settled_before, unknown_batches
from everyrun.reconciler.schedule import sweep_wait
from everyrun.settings import Settings
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")


class Sweeps:
    """One standing sweep a workflow. How far they came is kept in ``everyrun_queue.sweeps``.

    ``hurry`` is called with each batch that is polled and of which the sweep saw something new.
    """

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, lists: Lists, gets: Gets, hurry: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._lists = lists
        self._gets = gets
        self._hurry = hurry
        self._fetched: set[str] = set()
        self._last: dict[str, tuple[float, float]] = {}

    async def sweep_due(self) -> None:
        """Sweep each workflow whose turn it is. Raises asyncpg's and Kafka's errors; Extend's are a workflow's own."""
        for row in await self._pool.fetch(_sql["workflows"], self._settings.poll_for):
            workflow, in_doubt = row["workflow_id"], row["doubt_since"] is not None
            began = time.monotonic()
            if not self._is_due(row, began):
                continue
            since = row["last_begun_at"] or row["since"]
            if in_doubt:
                since = min(since, row["doubt_since"])
            try:
                await self.sweep(workflow, since)
            except (ExtendError, msgspec.DecodeError) as error:
                _log.warning("a sweep failed; it is made again", workflow=workflow, error=str(error))
            self._last[workflow] = (began, time.monotonic() - began)

    def _is_due(self, row: asyncpg.Record, now: float) -> bool:
        s = self._settings
        began, took = self._last.get(row["workflow_id"], (None, 0.0))
        if began is None:
            # Another process's, before this one led.
            last = row["last_begun_at"]
            began = float("-inf") if last is None else now - (row["now"] - last.timestamp())
        in_doubt = row["doubt_since"] is not None
        wait = sweep_wait(in_doubt=in_doubt, every=s.sweep_every, in_doubt_every=s.sweep_in_doubt_every, took=took)
        return now - began >= wait

    async def sweep(self, workflow_id: str, since: datetime) -> bool:
        """List the workflow's runs down to those last changed at ``since`` (by our clock) less a margin; whether all
        that was new could be had, in which case the sweep is kept as complete.

        Of each batch nobody knows one run is written to the log: the projection keeps it as unmatched, where the
        dispatcher finds it. Of batches that are settled every run whose state is new is. Raises ExtendError.
        """
        begun_at: datetime = await self._pool.fetchval(_sql["now"])
        back = timedelta(seconds=self._settings.sweep_margin + self._settings.poll_grace)
        floor: datetime | None = None
        before: datetime | None = None
        complete = True
        async for page, at in self._lists.pages(workflowId=workflow_id, sortBy="updatedAt", sortDir="desc"):
            if floor is None:
                # Extend's times are by Extend's clock.
                floor = since + (at - begun_at) - back
                before = settled_before(at, self._settings.poll_grace)
            complete = await self._look(page, before) and complete
            last = next((run.updated_at for run in reversed(page) if run.updated_at is not None), None)
            if last is not None and last < floor:
                break
        if complete:
            await self._pool.execute(_sql["keep_sweep"], workflow_id, begun_at)
            await self._pool.execute(_sql["forget_sweeps"], workflow_id, begun_at)
        return complete

    async def _look(self, page: Sequence[Listed], before: datetime | None) -> bool:
        """Have what is new of a page written to the log; whether all of it was to be had."""
        listed = sorted({run.batch_id for run in page if run.batch_id is not None})
        known = {
            row["batch_id"]: row
            for row in await self._pool.fetch(_sql["batches_listed"], listed, self._settings.poll_for)
        }
        complete = True
        for batch_id, run_ids in unknown_batches(page, known.keys() | self._fetched).items():
            complete = await self._one_of(batch_id, run_ids) and complete
        ours = [run for run in page if run.batch_id in known and known[run.batch_id]["ours"]]
        news = missing(ours, await self._gets.known(run.run_id for run in ours), before)
        wanted = []
        for run in news:
            assert run.batch_id is not None
            if known[run.batch_id]["polled"]:
                self._hurry(run.batch_id)
            else:
                wanted.append(run)
        outcomes = await self._gets.fetch(wanted)
        return complete and Outcome.NOT_NOW not in outcomes.values()

    async def _one_of(self, batch_id: str, run_ids: Sequence[str]) -> bool:
        """Get one run of a batch nobody knows; the next one where it is gone by now."""
        for run_id in run_ids:
            outcome = await self._gets.one(run_id, batch_id)
            if outcome is Outcome.HAD:
                self._fetched.add(batch_id)
            if outcome is not Outcome.GONE:
                return outcome is Outcome.HAD
        return True
