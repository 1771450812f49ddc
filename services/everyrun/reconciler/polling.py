"""Polling: open batches by List and Get, and the sweep for batches whose call had no answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

import asyncpg
import msgspec

from everyrun import telemetry
from everyrun.extend.client import Extend, ExtendError
from everyrun.failpoints import hit
from everyrun.log.producer import Log
from everyrun.reconciler.asking import ask
from everyrun.reconciler.missing import Listed, missing, read_page, unknown_batches
from everyrun.reconciler.schedule import Turn, after_failure, after_poll
from everyrun.settings import Settings
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

#: Runs a page of List; Extend's default is 10.
_PAGE = 100
_BATCHES_AT_ONCE = 4
_GETS_AT_ONCE = 16
#: A sweep looks this much further back than the call it looks for: our clock and Extend's may differ.
_MARGIN = timedelta(seconds=60)
#: Where no call is in doubt any more, but one was sent again, sweeps are this many times rarer.
_CALM = 20


class Polling:
    """Asks Extend for what webhooks did not bring, and writes it to the log."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, extend: Extend, log: Log) -> None:
        self._settings = settings
        self._pool = pool
        self._extend = extend
        self._log = log
        self._turns: dict[str, Turn] = {}
        self._asked: dict[str, dict[str, tuple[str, str]]] = {}
        self._swept: set[str] = set()
        self._sweep_began: dict[str, float] = {}

    async def poll_due(self) -> None:
        """Poll each open batch whose turn it is. Raises asyncpg's and Kafka's errors; Extend's are a batch's own."""
        s = self._settings
        rows = await self._pool.fetch(_sql["open_batches"], s.poll_first_after, s.poll_for)
        still_open = {row["batch_id"] for row in rows}
        for gone in self._turns.keys() - still_open:
            self._turns.pop(gone)
            self._asked.pop(gone, None)
        now = time.monotonic()
        due = [row for row in rows if self._turns.setdefault(row["batch_id"], Turn(now)).due <= now]
        gate = asyncio.Semaphore(_BATCHES_AT_ONCE)

        async def one(batch_id: str, settled: int) -> None:
            async with gate:
                await self._turn(batch_id, settled)

        async with asyncio.TaskGroup() as group:
            for row in due:
                group.create_task(one(row["batch_id"], row["settled"]))

    async def _turn(self, batch_id: str, settled: int) -> None:
        turn, every = self._turns[batch_id], self._settings.poll_every
        try:
            found = await self.poll(batch_id)
        except (ExtendError, msgspec.DecodeError) as error:
            _log.warning("a poll failed; the batch is polled again later", batch=batch_id, error=str(error))
            jitter = random.random()  # noqa: S311
            self._turns[batch_id] = after_failure(turn, now=time.monotonic(), every=every, jitter=jitter)
            return
        jitter = random.random()  # noqa: S311
        self._turns[batch_id] = after_poll(
            turn, now=time.monotonic(), every=every, settled=settled, found=found, jitter=jitter
        )

    async def poll(self, batch_id: str) -> int:
        """List the batch, Get what is missing, write it; how many runs were written.

        A run that cannot be had now is left for the next poll. Raises ExtendError where the list failed.
        """
        asked = self._asked.setdefault(batch_id, {})
        written = 0
        token: str | None = None
        while True:
            query: dict[str, str | int] = {
                "batchId": batch_id,
                "sortBy": "createdAt",
                "sortDir": "asc",
                "maxPageSize": _PAGE,
            }
            listed, token = await self._page(query, token)
            # A batch's list is its own: what a wrong answer mixes in is not looked at.
            own = [run for run in listed if run.batch_id in (None, batch_id)]
            wanted = missing(own, await self._known(run.run_id for run in own), asked)
            got = await self._get_all([run.run_id for run in wanted])
            asked.update({run.run_id: (run.status, run.updated_at) for run in wanted if run.run_id in got})
            written += len(got)
            if token is None:
                return written

    async def _page(self, query: dict[str, str | int], token: str | None) -> tuple[list[Listed], str | None]:
        if token is not None:
            query = {**query, "nextPageToken": token}
        page = await self._extend.list_runs(within=30.0, **query)
        following = page.get("nextPageToken")
        return read_page(page["data"]), following if isinstance(following, str) and following else None

    async def _known(self, run_ids: Iterable[str]) -> dict[str, set[str]]:
        known: dict[str, set[str]] = {}
        for row in await self._pool.fetch(_sql["known_runs"], list(run_ids)):
            known.setdefault(row["run_id"], set()).add(row["status"])
        return known

    async def _get_all(self, run_ids: list[str]) -> set[str]:
        """Get the runs and write them to the log; the ids of those that were had."""
        gate = asyncio.Semaphore(_GETS_AT_ONCE)
        got: set[str] = set()

        async def one(run_id: str) -> None:
            async with gate:
                try:
                    record = await ask(self._extend, run_id)
                except ExtendError as error:
                    _log.warning("a run could not be had", run=run_id, error=str(error))
                    return
                hit("polling.before_produce")
                await self._log.append([record])
                hit("polling.after_produce")
                got.add(run_id)

        async with asyncio.TaskGroup() as group:
            for run_id in run_ids:
                group.create_task(one(run_id))
        return got

    async def sweep_due(self) -> None:
        """Sweep each workflow that has a call of unknown outcome. Raises asyncpg's and Kafka's errors."""
        for row in await self._pool.fetch(_sql["doubts"]):
            workflow, now = row["workflow_id"], time.monotonic()
            every = self._settings.sweep_every * (1 if row["urgent"] else _CALM)
            if now - self._sweep_began.get(workflow, -every) < every:
                continue
            self._sweep_began[workflow] = now
            try:
                await self.sweep(workflow, row["since"])
            except (ExtendError, msgspec.DecodeError) as error:
                _log.warning("a sweep failed; it is made again", workflow=workflow, error=str(error))

    async def sweep(self, workflow_id: str, since: datetime) -> int:
        """List the workflow's runs, newest first, back to ``since``; write one run of each unknown batch to the log.

        The projection keeps it as unmatched, where the dispatcher finds it. How many were written.
        """
        written = 0
        token: str | None = None
        while True:
            query: dict[str, str | int] = {
                "workflowId": workflow_id,
                "sortBy": "createdAt",
                "sortDir": "desc",
                "maxPageSize": _PAGE,
            }
            listed, token = await self._page(query, token)
            batches = {run.batch_id for run in listed if run.batch_id is not None}
            known = {row["batch_id"] for row in await self._pool.fetch(_sql["known_batches"], sorted(batches))}
            unknown = unknown_batches(listed, known | self._swept)
            got = await self._get_all(list(unknown.values()))
            self._swept.update(batch for batch, run_id in unknown.items() if run_id in got)
            written += len(got)
            last = next((run.created_at for run in reversed(listed) if run.created_at is not None), None)
            if token is None or (last is not None and last < since - _MARGIN):
                return written
