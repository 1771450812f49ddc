"""Sends chunks: claims one, tells the log, calls Extend once, and lets the answer take effect."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import msgspec
from aiokafka.errors import KafkaError

from everyrun.extend import reserved
from everyrun.extend.budget import RUN
from everyrun.extend.client import Extend
from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.log.producer import Log
from everyrun.projection.offsets import ForeignLogError
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.submission.dispatch import event_records
from everyrun.submission.dispatch.classify import (
    Returned,
    Taken,
    Verdict,
    calls_wait,
    chunk_wait,
    classify_failure,
    classify_response,
    is_heard,
)
from everyrun.submission.dispatch.protocol import Answered, Expired, NotPossibleError, Unannounced
from everyrun.submission.dispatch.transitions import Transitions, UnknownChunkError, inputs_of
from everyrun.submission.recovery.queue_recovery import MARGIN, Level
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "../queue.sql")
_encode = msgspec.json.Encoder().encode

#: Postgres or Kafka is away, for now.
AWAY = (*POSTGRES_AWAY, KafkaError, ForeignLogError)
#: How long a chunk that the log does not take waits at most: others, of other partitions, go before it.
_UNANNOUNCED_WAIT = 60.0


class Dispatcher:
    """Sends chunks with several workers; one per process."""

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        extend: Extend,
        log: Log,
        installation: str,
        level: Level,
        transitions: Transitions,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._extend = extend
        self._log = log
        self._installation = installation
        self._level = level
        self._transitions = transitions
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        self.poke = asyncio.Event()
        #: How many calls in a row were not answered by Extend itself.
        self._unheard = 0

    async def work(self, stop: asyncio.Event) -> None:
        """Send chunks one after another until ``stop`` is set; a call under way is finished."""
        while not stop.is_set():
            try:
                if not await self._send_one():
                    self.poke.clear()
                    await _wait_any(stop, self.poke, seconds=0.25)
            except AWAY as error:
                self._level.lost_touch()
                _log.warning("the dispatcher waits", error=f"{type(error).__name__}: {error}")
                await _wait_any(stop, seconds=1.0)
            except Exception:
                _log.exception("a chunk could not be sent; it is resolved after its deadline")
                await _wait_any(stop, seconds=1.0)

    async def _send_one(self) -> bool:
        if not await self._pool.fetchval(_sql["something_waits"]):
            return False
        await self._extend.budget(RUN)
        incarnation = await self._level.check()
        now = datetime.now(UTC)
        begin_by = now + timedelta(seconds=self._settings.dispatch_deadline)
        ended_within = self._settings.dispatch_deadline + self._settings.call_timeout + MARGIN
        hit("dispatcher.before_claim")
        claimed = await self._pool.fetchrow(_sql["claim"], self._owner, ended_within, incarnation)
        if claimed is None:
            return False
        chunk, ended_by = claimed
        hit("dispatcher.after_claim")
        row: Any = await self._pool.fetchrow(_sql["attempt"], chunk)
        inputs = await inputs_of(self._pool, row)
        try:
            await self._log.append([event_records.requested(row, inputs, self._installation, begin_by, now)])
        except AWAY:
            await self._settle(row, inputs, Answered(row["attempt"], Unannounced()), incarnation)
            raise
        hit("dispatcher.after_intent")
        claim = (chunk, row["attempt"], self._owner, ended_by, incarnation)
        still = await self._pool.fetchrow(_sql["still_claimed"], *claim)
        # A claim that was taken away, a call begun too late, or one of what was taken meanwhile: nobody calls.
        may_call = still is not None and still["batch_id"] is None
        body = self._body(row, inputs) if may_call else b""
        may_call = may_call and datetime.now(UTC) <= begin_by
        outcome = await self._call(body, inputs, row["workflow_version"]) if may_call else Expired()
        await self._settle(row, inputs, Answered(row["attempt"], outcome), incarnation)
        return True

    async def _call(self, body: bytes, inputs: list[events.Input], version: str | None) -> Verdict:
        hit("dispatcher.before_post")
        try:
            response = await self._extend.create_batch(body)
            verdict = classify_response(response, [given.file for given in inputs], version)
        except httpx.HTTPError as error:
            verdict = classify_failure(error)
        hit("dispatcher.after_post")
        self._unheard = 0 if is_heard(verdict) else self._unheard + 1
        pause = calls_wait(verdict, max(self._unheard, 1))
        if pause:
            await self._extend.pause(RUN, pause)
        return verdict

    async def _settle(self, row: Any, inputs: list[events.Input], answered: Answered, incarnation: str) -> None:
        """Let an answer take effect; waits for a Kafka or a Postgres that is away: nobody else knows of it."""
        wait = 0.0
        if isinstance(answered.outcome, Returned):
            wait = chunk_wait(answered.outcome, answered.attempt)
        elif isinstance(answered.outcome, Unannounced):
            wait = min(2.0 ** min(answered.attempt, 10), _UNANNOUNCED_WAIT)
        told = False
        while True:
            try:
                if isinstance(answered.outcome, Taken) and not told:
                    await self._transitions.tell_taken(row, inputs, answered)
                    told = True
                claimed_in = None if told else incarnation
                await self._transitions.take(row["chunk"], answered, told=told, wait=wait, incarnation=claimed_in)
                return
            except (NotPossibleError, UnknownChunkError) as error:
                _log.info("an answer changes nothing", chunk=row["chunk"], why=str(error))
                return
            except AWAY as error:
                self._level.lost_touch()
                _log.warning("waiting to settle", chunk=row["chunk"], error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.5)

    def _body(self, row: Any, inputs: list[events.Input]) -> bytes:
        """The batch as Extend takes it (SDK 1.20.0, workflow_runs/client.py create_batch)."""
        workflow = {"id": row["workflow_id"]}
        if row["workflow_version"] is not None:
            workflow["version"] = row["workflow_version"]
        sent = [
            {
                "file": given.file,
                "metadata": reserved.mark(
                    given.metadata,
                    reserved.Reserved(self._installation, given.input_id, row["chunk"], row["attempt"], given.position),
                ),
            }
            for given in inputs
        ]
        return _encode({"workflow": workflow, "inputs": sent, "priority": row["priority"]})


async def _wait_any(*waits: asyncio.Event, seconds: float) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
