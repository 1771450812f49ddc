"""Sweep workflows: list the runs of each workflow that changed recently.

A sweep finds two things that polls do not find: batches that Everyrun does not know, and changes of runs whose batch is
settled and therefore no longer polled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.extend.client import ExtendError
from everyrun.reconciler.listed_runs import (
    ListedRun,
    change_cutoff,
    may_be_made_since,
    runs_of_unknown_batches,
    runs_to_fetch,
)
from everyrun.reconciler.run_fetcher import Outcome, RunFetcher
from everyrun.reconciler.run_lists import RunLists
from everyrun.reconciler.schedule import look_back_due, sweep_wait
from everyrun.settings import Settings
from everyrun.store.pool import SlowStatementError
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

#: Minimum time between two searches for workflows that are due, in seconds.
_LOOK_EVERY = 10.0
#: If this many runs of an unknown batch on a page cannot be fetched, the sweep continues without a run of that batch.
_TRIES = 3
#: Maximum number of unknown batches in ``Sweeps._fetched``. It is safe to forget older ones: their runs are in the
#: tables by then, so the batches are known.
_REMEMBERED = 10_000


class Cutoffs(NamedTuple):
    """The times with which a sweep compares runs. All are by Extend's clock."""

    #: The sweep stops when it reaches runs that last changed before this time.
    floor: datetime
    #: The sweep does not fetch a run that changed after this time, because its webhook may still arrive. None: the
    #: sweep fetches all runs.
    changed: datetime | None
    #: A call in doubt cannot have created a batch that is older than this time. None: the time is not known.
    oldest_call: datetime | None


class Sweeps:
    """Sweeps each workflow in turn, and records complete sweeps in ``everyrun_queue.sweeps``.

    A call in doubt may have created one of the listed batches. The runs of that batch then prove that Extend accepted
    the call. After a complete sweep, the log has a run of each such batch. So if complete sweeps find no proof, the
    resolver can resend the chunk.

    To be complete, a sweep must fetch one run of each listed batch, except in these cases:

    - The batch is known: it is ours, or the tables already have a run of it.
    - All runs of the batch were deleted, so none can ever be fetched.
    - A run of the batch was created before the oldest call in doubt began, so no call in doubt created the batch.

    If no run of any other batch can be fetched, sweeps remain incomplete until one can, or until no call is in doubt.

    A held chunk waits for a person's decision. If a run of that chunk appears, the decision is no longer necessary. To
    find such a run, some sweeps also list the older runs, back to the start of the chunk's call. The time between these
    sweeps grows up to a day (:func:`look_back_due`). If a person resends the chunk and the new call is in doubt too,
    every sweep goes back to the start of the new call.

    If a sweep finds a changed run in a batch that is still polled, it calls ``hurry`` with the id of the batch, so that
    the batch is polled soon.
    """

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        lists: RunLists,
        fetcher: RunFetcher,
        hurry: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._lists = lists
        self._fetcher = fetcher
        self._hurry = hurry
        self._clock = clock
        #: Unknown batches of which a run was fetched, oldest first.
        self._fetched: dict[str, None] = {}
        #: By workflow: when this process began the workflow's last sweep, and how many seconds that sweep took.
        self._last: dict[str, tuple[float, float]] = {}
        #: For each call that only a person can settle, by its workflow and start: when a sweep last listed runs back to
        #: that start.
        self._looked_back: dict[tuple[str, datetime], float] = {}
        self._look_every = min(_LOOK_EVERY, settings.sweep_every, settings.sweep_in_doubt_every)
        self._looked_at = float("-inf")

    async def sweep_due(self) -> None:
        """Sweep each workflow that is due. Raises asyncpg's and Kafka's errors.

        If Extend returns an error, this method logs it, continues with the other workflows, and sweeps that workflow
        again later.
        """
        if self._clock() - self._looked_at < self._look_every:
            return
        self._looked_at = self._clock()
        rows = await self._pool.fetch(_sql["workflows"], self._settings.poll_for, None)
        held = {(row["workflow_id"], call) for row in rows for call in row["held_calls"]}
        self._looked_back = {call: at for call, at in self._looked_back.items() if call in held}
        for found in rows:
            workflow, began = found["workflow_id"], self._clock()
            if not self._is_due(found, began):
                continue
            try:
                # Read the row again, because the sweeps of other workflows may have taken long.
                row = await self._pool.fetchrow(_sql["workflows"], self._settings.poll_for, workflow)
                if row is not None:
                    await self.sweep(workflow, self._since(row, began), row["oldest_call"])
            except (ExtendError, msgspec.DecodeError, SlowStatementError) as error:
                _log.warning("a sweep failed; retrying later", workflow=workflow, error=str(error))
            self._last[workflow] = (began, self._clock() - began)

    def _since(self, row: asyncpg.Record, now: float) -> datetime:
        """Return the time back to which a sweep must list runs.

        Usually that is the start of the last complete sweep. If a call that began earlier is still in doubt, it is the
        start of that call. A call that only a person can settle counts only at growing intervals.
        """
        since: datetime = row["last_begun_at"] or row["since"]
        if row["doubt_since"] is not None:
            since = min(since, row["doubt_since"])
        workflow, every = row["workflow_id"], self._settings.sweep_every
        for call, held_for in zip(row["held_calls"], row["held_for"], strict=True):
            last = self._looked_back.get((workflow, call), float("-inf"))
            if look_back_due(held_for, now - last, every):
                since = min(since, call)
        for call in row["held_calls"]:
            if call >= since:
                self._looked_back[workflow, call] = now
        return since

    def _is_due(self, row: asyncpg.Record, now: float) -> bool:
        s = self._settings
        began, took = self._last.get(row["workflow_id"], (None, 0.0))
        if began is None:
            # This process has not swept the workflow yet. If another process has, take the time of that sweep.
            last = row["last_begun_at"]
            began = float("-inf") if last is None else now - (row["now"] - last.timestamp())
        in_doubt = row["doubt_since"] is not None
        wait = sweep_wait(in_doubt=in_doubt, every=s.sweep_every, in_doubt_every=s.sweep_in_doubt_every, took=took)
        return now - began >= wait

    async def sweep(self, workflow_id: str, since: datetime, oldest_call: datetime | None) -> bool:
        """List a workflow's runs, last changed first, back to ``since``, and write what is new to the log.

        If the sweep is complete (see the docstring of the class), record it and return True. ``since`` is a time by our
        clock; the sweep goes back a little further, by a safety margin. ``oldest_call`` is the time when the oldest
        call in doubt began. It is the current time if no call is in doubt, and None if the time is not known.

        The sweep fetches one run of each unknown batch. The projection stores this run as an unmatched run, where the
        resolver finds it. The sweep also fetches each run of a settled batch that has a new state. If it cannot fetch
        such a run, it records this, and later sweeps try again at growing intervals. Raises ExtendError.
        """
        begun_at: datetime = await self._pool.fetchval(_sql["now"])
        back = timedelta(seconds=self._settings.sweep_margin + self._settings.poll_grace)
        cutoffs: Cutoffs | None = None
        complete = True
        async for page, at in self._lists.pages(workflowId=workflow_id, sortBy="updatedAt", sortDir="desc"):
            if cutoffs is None:
                ahead = at - begun_at
                cutoffs = Cutoffs(
                    floor=since + ahead - back,
                    changed=change_cutoff(at, self._settings.poll_grace),
                    oldest_call=oldest_call and oldest_call + ahead - back,
                )
            complete = await self._fetch_page(page, cutoffs) and complete
            last = next((run.updated_at for run in reversed(page) if run.updated_at is not None), None)
            if last is not None and last < cutoffs.floor:
                break
        if complete:
            await self._pool.execute(_sql["save_sweep"], workflow_id, begun_at)
            await self._pool.execute(_sql["forget_sweeps"], workflow_id, begun_at)
        failed = await self._pool.fetch(_sql["failed_runs"], workflow_id, self._settings.poll_for)
        await self._fetch_settled([ListedRun(row["run_id"], "failed before", row["batch_id"]) for row in failed])
        return complete

    async def _fetch_page(self, page: Sequence[ListedRun], cutoffs: Cutoffs) -> bool:
        """Write what is new on a page to the log. Return False if this page makes the sweep incomplete.

        That is the case if the page lists runs of an unknown batch, none of these runs can be fetched, and a call in
        doubt may have created the batch.
        """
        listed = sorted({run.batch_id for run in page if run.batch_id is not None})
        known = {
            row["batch_id"]: row
            for row in await self._pool.fetch(_sql["batches_listed"], listed, self._settings.poll_for)
        }
        complete = True
        for batch_id, runs in runs_of_unknown_batches(page, known.keys() | self._fetched.keys()).items():
            if await self._fetch_any(batch_id, runs):
                continue
            may_be_ours = may_be_made_since(runs, cutoffs.oldest_call)
            _log.warning("cannot fetch any run of an unknown batch", batch=batch_id, may_be_in_doubt=may_be_ours)
            complete = complete and not may_be_ours
        ours = [run for run in page if run.batch_id in known and known[run.batch_id]["ours"]]
        new = runs_to_fetch(ours, await self._fetcher.known(run.run_id for run in ours), cutoffs.changed)
        wanted = []
        for run in new:
            assert run.batch_id is not None
            if known[run.batch_id]["polled"]:
                self._hurry(run.batch_id)
            else:
                wanted.append(run)
        await self._fetch_settled(wanted)
        return complete

    async def _fetch_settled(self, wanted: Sequence[ListedRun]) -> None:
        """Fetch runs of settled batches.

        If a run cannot be fetched, record it in ``gone_runs``, so that the next sweep tries again. The next sweep may
        not list this run, because it lists only later changes.
        """
        outcomes = await self._fetcher.fetch(wanted)
        fetched = [run.run_id for run in wanted if outcomes[run.run_id] is Outcome.FETCHED]
        if fetched:
            await self._pool.execute(_sql["forget_gone"], fetched)
        for run in wanted:
            if outcomes[run.run_id] is Outcome.UNAVAILABLE:
                await self._pool.execute(_sql["save_failed"], run.run_id, run.batch_id)

    async def _fetch_any(self, batch_id: str, runs: Sequence[ListedRun]) -> bool:
        """Fetch one of these runs of an unknown batch. Return True if one was fetched, or all of them were deleted."""
        tries = 0
        # Any run of the batch will do, so begin with the runs that have failed least often.
        for run in sorted(runs, key=lambda run: self._fetcher.failures(run.run_id)):
            outcome = await self._fetcher.fetch_one(run.run_id, batch_id)
            if outcome is Outcome.FETCHED:
                self._fetched[batch_id] = None
                while len(self._fetched) > _REMEMBERED:
                    del self._fetched[next(iter(self._fetched))]
                return True
            tries += outcome is Outcome.UNAVAILABLE
            if tries == _TRIES:
                break
        return tries == 0
