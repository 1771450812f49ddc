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
from everyrun.reconciler.missing import Listed, made_since, missing, settled_before, unknown_batches
from everyrun.reconciler.schedule import look_back_wait, sweep_wait
from everyrun.settings import Settings
from everyrun.store.pool import SlowStatementError
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

#: The workflows are looked up this often at most, in seconds.
_LOOK_EVERY = 10.0
#: Runs of an unknown batch that are tried on a page before it is left for this time.
_TRIES = 3
#: Unknown batches remembered as found; the processor has told of the oldest long since.
_REMEMBERED = 10_000


class Sweeps:
    """One standing sweep a workflow. How far they came is kept in ``everyrun_queue.sweeps``.

    A sweep that is kept there as complete says: every batch that a call of unknown outcome may have made, and that was
    listed, has a run of it in the log. So a chunk in doubt is sent again only after such sweeps. What does not count:

    - a run of a batch that is known (ours, or somebody's of which a run is in the tables): it proves nothing new;
    - a batch all of whose runs are gone: nobody can ever have them;
    - a batch of which no run can be had, but one was created before the oldest call that may still be in doubt.

    A batch of which no run can be had and that was created later may be the one looked for. It keeps the sweep from
    being complete for as long as such a call is in doubt, that is until a run of it can be had or a person decides.

    A chunk that is held waits for a person; only a run of it could spare the decision. Sweeps look back for it ever
    more rarely, in the end once a day (:func:`look_back_wait`). Once it is sent again and in doubt again, it counts
    like any other.

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
        self._fetched: dict[str, None] = {}
        self._last: dict[str, tuple[float, float]] = {}
        #: When this process last looked back to a call that only a person can settle.
        self._looked_back: dict[tuple[str, datetime], float] = {}
        self._look_every = min(_LOOK_EVERY, settings.sweep_every, settings.sweep_in_doubt_every)
        self._looked_at = float("-inf")

    async def sweep_due(self) -> None:
        """Sweep each workflow whose turn it is. Raises asyncpg's and Kafka's errors; Extend's are a workflow's own."""
        if time.monotonic() - self._looked_at < self._look_every:
            return
        self._looked_at = time.monotonic()
        rows = await self._pool.fetch(_sql["workflows"], self._settings.poll_for, None)
        held = {(row["workflow_id"], call) for row in rows for call in row["held_calls"]}
        self._looked_back = {call: at for call, at in self._looked_back.items() if call in held}
        for found in rows:
            workflow, began = found["workflow_id"], time.monotonic()
            if not self._is_due(found, began):
                continue
            try:
                # Sweeps of others may have taken long.
                row = await self._pool.fetchrow(_sql["workflows"], self._settings.poll_for, workflow)
                if row is not None:
                    await self.sweep(workflow, self._since(row, began), row["oldest_call"])
            except (ExtendError, msgspec.DecodeError, SlowStatementError) as error:
                _log.warning("a sweep failed; it is made again", workflow=workflow, error=str(error))
            self._last[workflow] = (began, time.monotonic() - began)

    def _since(self, row: asyncpg.Record, now: float) -> datetime:
        """Back to when a sweep goes: to the last one, to every call that evidence may settle, and now and then to those
        that only a person can."""
        since: datetime = row["last_begun_at"] or row["since"]
        if row["doubt_since"] is not None:
            since = min(since, row["doubt_since"])
        workflow, every = row["workflow_id"], self._settings.sweep_every
        for call, held_for in zip(row["held_calls"], row["held_for"], strict=True):
            last = self._looked_back.get((workflow, call), float("-inf"))
            if now - last >= look_back_wait(held_for, every):
                since = min(since, call)
        for call in row["held_calls"]:
            if call >= since:
                self._looked_back[workflow, call] = now
        return since

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

    async def sweep(self, workflow_id: str, since: datetime, oldest_call: datetime | None) -> bool:
        """List the workflow's runs down to those last changed at ``since`` (by our clock) less a margin; whether the
        sweep is complete (see above), in which case it is kept. ``oldest_call`` is when the oldest call of unknown
        outcome began (now, where there is none; None where that is not known).

        Of each batch nobody knows one run is written to the log: the projection keeps it as unmatched, where the
        dispatcher finds it. Of batches that are settled every run whose state is new is; one that cannot be had is
        noted, and asked for with later sweeps, ever more rarely. Raises ExtendError.
        """
        begun_at: datetime = await self._pool.fetchval(_sql["now"])
        back = timedelta(seconds=self._settings.sweep_margin + self._settings.poll_grace)
        floor: datetime | None = None
        before: datetime | None = None
        call: datetime | None = None
        complete = True
        async for page, at in self._lists.pages(workflowId=workflow_id, sortBy="updatedAt", sortDir="desc"):
            if floor is None:
                # Extend's times are by Extend's clock.
                floor = since + (at - begun_at) - back
                before = settled_before(at, self._settings.poll_grace)
                call = oldest_call and oldest_call + (at - begun_at) - back
            complete = await self._look(page, before, call) and complete
            last = next((run.updated_at for run in reversed(page) if run.updated_at is not None), None)
            if last is not None and last < floor:
                break
        if complete:
            await self._pool.execute(_sql["keep_sweep"], workflow_id, begun_at)
            await self._pool.execute(_sql["forget_sweeps"], workflow_id, begun_at)
        owed = await self._pool.fetch(_sql["owed"], workflow_id, self._settings.poll_for)
        await self._have([Listed(row["run_id"], "owed", row["batch_id"]) for row in owed])
        return complete

    async def _look(self, page: Sequence[Listed], before: datetime | None, call: datetime | None) -> bool:
        """Have what is new of a page written to the log; whether all is that a call since then may have made."""
        listed = sorted({run.batch_id for run in page if run.batch_id is not None})
        known = {
            row["batch_id"]: row
            for row in await self._pool.fetch(_sql["batches_listed"], listed, self._settings.poll_for)
        }
        complete = True
        for batch_id, runs in unknown_batches(page, known.keys() | self._fetched.keys()).items():
            if await self._one_of(batch_id, runs):
                continue
            may_be_ours = made_since(runs, call)
            _log.warning("no run of an unknown batch could be had", batch=batch_id, may_be_in_doubt=may_be_ours)
            complete = complete and not may_be_ours
        ours = [run for run in page if run.batch_id in known and known[run.batch_id]["ours"]]
        news = missing(ours, await self._gets.known(run.run_id for run in ours), before)
        wanted = []
        for run in news:
            assert run.batch_id is not None
            if known[run.batch_id]["polled"]:
                self._hurry(run.batch_id)
            else:
                wanted.append(run)
        await self._have(wanted)
        return complete

    async def _have(self, wanted: Sequence[Listed]) -> None:
        """Get runs of settled batches; note those that cannot be had among the gone ones, where the next sweep finds
        them: the list will not show them again."""
        outcomes = await self._gets.fetch(wanted)
        had = [run.run_id for run in wanted if outcomes[run.run_id] is Outcome.HAD]
        if had:
            await self._pool.execute(_sql["not_gone"], had)
        for run in wanted:
            if outcomes[run.run_id] is Outcome.NOT_NOW:
                await self._pool.execute(_sql["keep_owed"], run.run_id, run.batch_id)

    async def _one_of(self, batch_id: str, runs: Sequence[Listed]) -> bool:
        """Get one run of a batch nobody knows; another where it is gone or cannot be had. Whether one was had, or
        none is there any more."""
        tries = 0
        # Those first that have not failed: one of them says as much as any other.
        for run in sorted(runs, key=lambda run: self._gets.failures(run.run_id)):
            outcome = await self._gets.one(run.run_id, batch_id)
            if outcome is Outcome.HAD:
                self._fetched[batch_id] = None
                while len(self._fetched) > _REMEMBERED:
                    del self._fetched[next(iter(self._fetched))]
                return True
            tries += outcome is Outcome.NOT_NOW
            if tries == _TRIES:
                break
        return tries == 0
