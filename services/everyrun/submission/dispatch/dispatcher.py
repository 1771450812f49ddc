"""Send chunks to Extend: claim a chunk, announce the attempt in the log, call Extend once, and apply the answer.

If the chunk has objects in buckets, they are checked and presigned after the claim. So a link is as old as its call.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

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
    Accepted,
    Blocked,
    Refused,
    Returned,
    Verdict,
    calls_wait,
    chunk_wait,
    classify_failure,
    classify_response,
    is_from_extend,
)
from everyrun.submission.dispatch.event_records import ChunkRow
from everyrun.submission.dispatch.object_links import Files, ObjectLinks
from everyrun.submission.dispatch.protocol import Answered, Expired, NotPossibleError, Unannounced
from everyrun.submission.dispatch.transitions import Transitions, UnknownChunkError, inputs_of
from everyrun.submission.recovery.queue_recovery import CALL_MARGIN, QueueRecovery
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "dispatch.sql")
_encode = msgspec.json.Encoder().encode

#: The errors which mean that Postgres or Kafka is unavailable for now.
UNAVAILABLE = (*POSTGRES_AWAY, KafkaError, ForeignLogError)
#: Maximum wait, in seconds, before a chunk is tried again after Kafka did not accept its batch-requested event.
#: Meanwhile, chunks whose events go to other partitions are sent.
_MAX_UNANNOUNCED_WAIT = 60.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Dispatcher:
    """Send chunks with several workers. A process has one dispatcher."""

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        extend: Extend,
        log: Log,
        installation: str,
        recovery: QueueRecovery,
        transitions: Transitions,
        links: ObjectLinks,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._extend = extend
        self._log = log
        self._installation = installation
        self._recovery = recovery
        self._transitions = transitions
        self._links = links
        self._clock = clock
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        #: Wakes the idle workers. Set this event if a chunk may be ready to be sent.
        self.wake = asyncio.Event()
        #: The number of calls in a row that Extend itself did not answer.
        self._not_from_extend = 0

    async def work(self, stop: asyncio.Event) -> None:
        """Send one chunk after another until ``stop`` is set. Complete a call that is in progress."""
        while not stop.is_set():
            try:
                if not await self.send_one():
                    self.wake.clear()
                    await _wait_any(stop, self.wake)
            except UNAVAILABLE as error:
                self._recovery.invalidate()
                _log.warning("the dispatcher waits", error=f"{type(error).__name__}: {error}")
                await _wait_any(stop, seconds=1.0)
            except Exception:
                _log.exception(
                    "sending a chunk failed; the resolver takes it over when the claim's deadline has passed"
                )
                await _wait_any(stop, seconds=1.0)

    async def look(self) -> None:
        """Wake the idle workers if a chunk can be sent. Call this once a second.

        While all chunks wait for the sending window, the workers sleep. Raises the errors in UNAVAILABLE.
        """
        if await self._something_waits():
            self.wake.set()

    async def _something_waits(self) -> bool:
        found: bool = await self._pool.fetchval(_sql["something_waits"], self._settings.max_open_inputs)
        return found

    async def send_one(self) -> bool:
        """Claim and send one chunk; return False if none is ready. Raises the errors in UNAVAILABLE."""
        if not await self._something_waits():
            return False
        await self._extend.wait_for_turn(RUN)
        incarnation = await self._recovery.ensure_caught_up()
        now = self._clock()
        begin_by = now + timedelta(seconds=self._settings.dispatch_deadline)
        ends_within = self._settings.dispatch_deadline + self._settings.call_timeout + CALL_MARGIN
        hit("dispatcher.before_claim")
        claim_of = (self._owner, ends_within, incarnation, self._settings.max_open_inputs)
        claimed = await self._pool.fetchrow(_sql["claim"], *claim_of)
        if claimed is None:
            return False
        chunk, ends_by = claimed
        hit("dispatcher.after_claim")
        found = await self._pool.fetchrow(_sql["attempt"], chunk)
        assert found is not None, "the claim has just updated the chunk"
        row = ChunkRow.of(found)
        inputs = await inputs_of(self._pool, row)
        files = await self._links.files_to_send(inputs)
        if isinstance(files, Unannounced):
            await self._apply(row, inputs, Answered(row.attempt, files), incarnation)
            return True
        try:
            await self._log.append([event_records.batch_requested(row, inputs, self._installation, begin_by, now)])
        except UNAVAILABLE:
            await self._apply(row, inputs, Answered(row.attempt, Unannounced()), incarnation)
            raise
        hit("dispatcher.after_intent")
        claim = (chunk, row.attempt, self._owner, ends_by, incarnation)
        still_claimed = await self._pool.fetchrow(_sql["still_claimed"], *claim)
        # Do not call if the claim was revoked, if an earlier attempt is known to be accepted, or after the deadline.
        may_call = still_claimed is not None and still_claimed["batch_id"] is None
        outcome: Verdict | Expired
        if may_call and isinstance(files, Refused | Blocked):
            outcome = files
        elif may_call and isinstance(files, list):
            body = self._body(row, inputs, files)
            may_call = self._clock() <= begin_by
            outcome = await self._call(body, inputs, row.workflow_version) if may_call else Expired()
        else:
            outcome = Expired()
        await self._apply(row, inputs, Answered(row.attempt, outcome), incarnation)
        return True

    async def _call(self, body: bytes, inputs: list[events.Input], version: str | None) -> Verdict:
        hit("dispatcher.before_post")
        try:
            response = await self._extend.create_batch(body)
            verdict = classify_response(response, [given.file for given in inputs], version)
        except httpx.HTTPError as error:
            verdict = classify_failure(error)
        hit("dispatcher.after_post")
        self._not_from_extend = 0 if is_from_extend(verdict) else self._not_from_extend + 1
        pause = calls_wait(verdict, max(self._not_from_extend, 1))
        if pause:
            await self._extend.pause(RUN, pause)
        return verdict

    async def _apply(self, row: ChunkRow, inputs: list[events.Input], answered: Answered, incarnation: str) -> None:
        """Apply an answer to the chunk.

        Retries while Kafka or Postgres is unavailable, because only this worker knows the answer.
        """
        wait = 0.0
        if isinstance(answered.outcome, Returned):
            wait = chunk_wait(answered.outcome, answered.attempt)
        elif isinstance(answered.outcome, Unannounced):
            wait = min(2.0 ** min(answered.attempt, 10), _MAX_UNANNOUNCED_WAIT)
        published = False
        while True:
            try:
                if isinstance(answered.outcome, Accepted) and not published:
                    await self._transitions.publish_accepted(row, inputs, answered)
                    published = True
                claimed_in = None if published else incarnation
                await self._transitions.apply(
                    row.chunk, answered, published=published, wait=wait, incarnation=claimed_in
                )
                return
            except (NotPossibleError, UnknownChunkError) as error:
                _log.info("an answer changes nothing", chunk=row.chunk, why=str(error))
                return
            except UNAVAILABLE as error:
                self._recovery.invalidate()
                _log.warning("waiting to apply an answer", chunk=row.chunk, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.5)

    def _body(self, row: ChunkRow, inputs: list[events.Input], files: Files) -> bytes:
        """Return the body of the batch call (SDK 1.20.0, workflow_runs/client.py create_batch)."""
        workflow = {"id": row.workflow_id}
        if row.workflow_version is not None:
            workflow["version"] = row.workflow_version
        batch = [
            {
                "file": file,
                "metadata": reserved.mark(
                    given.metadata,
                    reserved.Reserved(self._installation, given.input_id, row.chunk, row.attempt, given.position),
                ),
            }
            for given, file in zip(inputs, files, strict=True)
        ]
        return _encode({"workflow": workflow, "inputs": batch, "priority": row.priority})


async def _wait_any(*waits: asyncio.Event, seconds: float | None = None) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
