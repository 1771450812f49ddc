"""Fetch runs from Extend and write them to the log: each state of a run once, as far as possible."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum
from typing import TypeVar

import asyncpg

from everyrun import telemetry
from everyrun.extend.client import Extend, ExtendError
from everyrun.failpoints import hit
from everyrun.log.cloudevents import Record, timestamp
from everyrun.log.observation import InvalidRunError, observed, read_head
from everyrun.log.producer import Log
from everyrun.reconciler.listed_runs import KnownState, ListedRun, is_known
from everyrun.store.pool import SlowStatementError
from everyrun.store.sql import beside

_log = telemetry.log(__name__)
_sql = beside(__file__, "reconciler.sql")

#: The CloudEvents ``source`` of the events that the reconciler writes.
SERVICE = "/everyrun/reconciler"

#: How many runs are fetched at the same time.
_AT_ONCE = 16
#: Before each group of this many runs, the tables are read again: webhooks may have reported these runs meanwhile.
_SLICE = 64
#: Maximum number of runs whose last fetched state is remembered. The same maximum applies to the runs whose failures
#: are remembered. If the state of a run is forgotten, the run is still not fetched twice, because the tables have that
#: state by then.
_REMEMBERED = 100_000
#: Longest wait before a run that could not be fetched is tried again, in seconds.
_MAX_WAIT = 3600.0
#: The HTTP statuses with which Extend answers a request for a deleted run.
_GONE = (404, 410)

_Value = TypeVar("_Value")


class Outcome(Enum):
    """The outcome of fetching a run."""

    FETCHED = "the run is in the log"
    KNOWN = "nothing new: the tables have this state of the run, or this process has fetched it before"
    GONE = "the run was deleted"
    UNAVAILABLE = "Extend did not return the run; it is fetched again later"


def poll_record(run: bytes, run_id: str, requested_at: str) -> Record:
    """Return the record for a run that was fetched. ``requested_at`` (RFC 3339) is when the request was sent.

    Raises InvalidRunError if the bytes are not a run, or if the id of the run is not ``run_id``.
    """
    head = read_head(run)
    if head.id != run_id:
        raise InvalidRunError(f"requested {run_id}, received {head.id[:80]}")
    id = f"poll/{run_id}/{requested_at}/{hashlib.sha256(run).hexdigest()[:16]}"
    return observed(run, head, source="poll", id=id, time=requested_at, service=SERVICE)


async def fetch_run(extend: Extend, run_id: str, within: float = 30.0, tries: int = 3) -> Record:
    """Fetch a run and return it as a record. Raises ExtendError.

    If the response is not this run, the request is repeated. ``tries`` is the maximum number of requests. ``within`` is
    the timeout of each request, in seconds.
    """
    for attempt in range(1, tries + 1):
        requested_at = timestamp(time.time())
        run = await extend.get_run(run_id, within)
        try:
            return poll_record(run, run_id, requested_at)
        except InvalidRunError as error:
            if attempt == tries:
                raise ExtendError(200, "UNREADABLE", str(error)) from None
    raise AssertionError("unreachable")


class RunFetcher:
    """Fetches runs and writes them to the log. It fetches each state of a run once, as far as possible.

    If Extend does not return a run, the next try for that run comes after ``first_wait`` seconds at the earliest. The
    wait doubles after each failure, up to an hour, so that a run that can never be fetched costs few requests.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        extend: Extend,
        log: Log,
        *,
        first_wait: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_wait = first_wait
        self._clock = clock
        #: By run id: how often fetching the run has failed, and the time before which it is not tried again.
        self._failed: dict[str, tuple[int, float]] = {}
        self._pool = pool
        self._extend = extend
        self._log = log
        #: By run id: the status and updatedAt that the list showed when the run was last fetched.
        self._fetched: dict[str, tuple[str, datetime | None]] = {}

    async def known(self, run_ids: Iterable[str]) -> dict[str, set[KnownState]]:
        """Return the states of these runs in the tables, by run id. A run that is not in the tables is left out."""
        known: dict[str, set[KnownState]] = {}
        for row in await self._pool.fetch(_sql["known_runs"], list(run_ids)):
            known.setdefault(row["run_id"], set()).add((row["status"], row["settled_at"]))
        return known

    async def fetch(self, wanted: Sequence[ListedRun]) -> dict[str, Outcome]:
        """Fetch the runs whose state is not in the tables. Return the outcome for each of these runs, by run id.

        Raises Kafka's and asyncpg's errors.
        """
        outcomes = dict.fromkeys((run.run_id for run in wanted), Outcome.KNOWN)
        new = [run for run in wanted if self._fetched.get(run.run_id) != (run.status, run.updated_at)]
        for start in range(0, len(new), _SLICE):
            part = new[start : start + _SLICE]
            known = await self.known(run.run_id for run in part)
            outcomes.update(await self._fetch([run for run in part if not is_known(run, known.get(run.run_id, ()))]))
        return outcomes

    async def _fetch(self, runs: list[ListedRun]) -> dict[str, Outcome]:
        gate = asyncio.Semaphore(_AT_ONCE)
        outcomes: dict[str, Outcome] = {}

        async def one(run: ListedRun) -> None:
            async with gate:
                _remember(self._fetched, run.run_id, (run.status, run.updated_at))
                outcome = outcomes[run.run_id] = await self.fetch_one(run.run_id, run.batch_id)
                if outcome is Outcome.UNAVAILABLE:
                    self._fetched.pop(run.run_id, None)

        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(one(run))
        return outcomes

    def failures(self, run_id: str) -> int:
        """Return how often fetching the run has failed since it last succeeded."""
        return self._failed.get(run_id, (0, 0.0))[0]

    async def fetch_one(self, run_id: str, batch_id: str | None) -> Outcome:
        """Fetch one run and write it to the log, or record that it was deleted. Raises Kafka's and asyncpg's errors.

        If the last fetch of the run failed, and it is too early to try again, return UNAVAILABLE without a request.
        """
        times, not_before = self._failed.get(run_id, (0, 0.0))
        if self._clock() < not_before:
            return Outcome.UNAVAILABLE
        try:
            record = await fetch_run(self._extend, run_id)
        except ExtendError as error:
            if error.status not in _GONE:
                wait = min(self._first_wait * 2.0 ** min(times, 30), _MAX_WAIT)
                _remember(self._failed, run_id, (times + 1, self._clock() + wait))
                _log.warning("cannot fetch a run", run=run_id, error=str(error), times=times + 1, retry_after=wait)
                return Outcome.UNAVAILABLE
            self._failed.pop(run_id, None)
            _log.warning("a run was deleted at Extend", run=run_id, batch=batch_id)
            try:
                await self._pool.execute(_sql["save_gone"], run_id, batch_id)
            except SlowStatementError as slow:
                # Do not raise this error: it would cancel the tasks that are fetching other runs.
                _log.warning("cannot record that a run was deleted", run=run_id, error=str(slow))
                return Outcome.UNAVAILABLE
            return Outcome.GONE
        hit("polling.before_produce")
        await self._log.append([record])
        hit("polling.after_produce")
        self._failed.pop(run_id, None)
        return Outcome.FETCHED


def _remember(kept: dict[str, _Value], name: str, value: _Value) -> None:
    """Remember a value as the newest one. If there are more than _REMEMBERED, forget the oldest."""
    kept.pop(name, None)
    kept[name] = value
    while len(kept) > _REMEMBERED:
        del kept[next(iter(kept))]
