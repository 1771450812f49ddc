"""Accept ``POST /workflow_runs/batch`` into the queue, and answer with a batchId.

The answer waits a moment for the outcome of the call to Extend: if Extend accepts all inputs as one batch, the caller
gets Extend's batchId, and if Extend refuses the batch, the caller gets Extend's error. After that moment, the caller
gets a batchId of Everyrun's. Either way, the first answer is kept, and each repetition gets the same one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence

import asyncpg

from everyrun.settings import Settings
from everyrun.store.sql import Row, beside
from everyrun.submission.dropin.batch_body import Batch, bad_inputs
from everyrun.submission.dropin.extend_form import Problem, own_batch_id, refusal
from everyrun.submission.intake.accept import (
    BadRowsError,
    IdempotencyConflictError,
    QueueReplacedError,
    accept_submission,
)
from everyrun.submission.intake.idempotency import Recent, is_known
from everyrun.submission.intake.parse import RowGroup
from everyrun.submission.intake.workflows import UnknownVersionError, UnknownWorkflowError, Workflows
from everyrun.submission.recovery.queue_recovery import NotCaughtUpError, QueueRecovery, require_restored

_sql = beside(__file__, "runs.sql")
#: Seconds for which the same body from the same token is the same batch. Extend's SDK retries within two minutes (SDK
#: 1.20.0, core/http_client.py: two retries, each after at most 60 s).
SAME_FOR = 600.0
#: Begins the Idempotency-Key of every submission that this endpoint accepts.
_KEY = "dropin/"
#: Shortest and longest time between two looks at the outcome, in seconds.
_LOOK, _LOOK_MOST = 0.02, 0.2


def keys_of(caller: str, body: bytes, now: float) -> tuple[str, Recent]:
    """Return the Idempotency-Key of a body, and the key that the body had in the period before. Pure."""
    name = _KEY + hashlib.sha256(b"%s\0%s" % (caller.encode(), body)).hexdigest()
    period = int(now / SAME_FOR)
    return f"{name}/{period}", Recent(name, f"{name}/{period - 1}", SAME_FOR)


def given_key(caller: str, key: str) -> str:
    """Return the Idempotency-Key of a submission whose caller sent one. Pure."""
    return _KEY + hashlib.sha256(b"key\0%s\0%s" % (caller.encode(), key.encode("utf-8", "surrogateescape"))).hexdigest()


class Batches:
    """Accepts batches. ``wake_announcer`` is set after each."""

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        recovery: QueueRecovery,
        workflows: Workflows,
        wake_announcer: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._recovery = recovery
        self._workflows = workflows
        self._wake_announcer = wake_announcer

    async def create(self, batch: Batch, body: bytes, caller: str, key: str | None) -> str:
        """Accept a batch, and return its batchId. When this returns, the queue holds all inputs.

        ``key`` is the Idempotency-Key that the caller sent. Without it, the same body within SAME_FOR is the same
        batch. Raises Problem, NotCaughtUpError and asyncpg's errors.
        """
        own, recent = (given_key(caller, key), None) if key is not None else keys_of(caller, body, time.time())
        incarnation = await require_restored(self._recovery)
        known = [await is_known(self._pool, name) for name in (own, *([recent.earlier_key] if recent else []))]
        if not any(known):
            await self._check_workflow(batch)
        try:
            accepted = await accept_submission(
                self._pool,
                self._settings,
                _one_group(batch.rows),
                workflow_id=batch.workflow_id,
                workflow_version=batch.workflow_version,
                priority=batch.priority,
                idempotency_key=own,
                incarnation=incarnation,
                recent=recent,
            )
        except BadRowsError as error:
            raise bad_inputs(error) from None
        except QueueReplacedError:
            raise NotCaughtUpError("the database was replaced during the upload; send it again") from None
        except IdempotencyConflictError:
            # Not 409, because Extend's SDK would retry it.
            message = "idempotency-key: was used for another batch; use a new key, or send the first batch again"
            raise Problem(422, message, "IDEMPOTENCY_CONFLICT") from None
        self._wake_announcer.set()
        return await self._answer(accepted.submission_id)

    async def _check_workflow(self, batch: Batch) -> None:
        try:
            await self._workflows.check(batch.workflow_id, batch.workflow_version)
        except (UnknownWorkflowError, UnknownVersionError) as error:
            raise Problem(404, str(error)) from None

    async def _answer(self, submission_id: str) -> str:
        """Return the batchId of a submission. Raises Problem if Extend refused the submission as a whole."""
        known: str | None = await self._pool.fetchval(_sql["answer"], submission_id)
        if known is not None:
            return known
        batch_id = await self._outcome(submission_id) or own_batch_id(submission_id)
        await self._pool.execute(_sql["save_answer"], submission_id, batch_id)
        return str(await self._pool.fetchval(_sql["answer"], submission_id))

    async def _outcome(self, submission_id: str) -> str | None:
        """Return Extend's batchId if Extend accepts the submission as one batch within EVERYRUN_DROPIN_WAIT.

        Raises Problem if Extend refuses it as a whole.
        """
        ends, wait = time.monotonic() + self._settings.dropin_wait, _LOOK
        while True:
            chunks = await self._pool.fetch(_sql["outcome"], submission_id)
            if not is_open(chunks):
                return batch_of(chunks)
            if time.monotonic() + wait > ends:
                return None
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, _LOOK_MOST)


def is_open(chunks: Sequence[Row]) -> bool:
    """Return True if there is one chunk, and its first call has not ended. Pure."""
    if len(chunks) != 1 or chunks[0]["paused"]:
        return False
    state, attempt = chunks[0]["state"], chunks[0]["attempt"]
    return (state, attempt) in (("waiting", 0), ("sending", 1))


def batch_of(chunks: Sequence[Row]) -> str | None:
    """Return the batchId at Extend of a submission with a single chunk, if Extend has accepted it. Pure.

    Raises Problem if Extend has refused it.
    """
    if len(chunks) != 1:
        return None
    if chunks[0]["state"] == "refused":
        raise refusal(chunks[0]["reason"])
    batch_id: str | None = chunks[0]["batch_id"] if chunks[0]["state"] == "submitted" else None
    return batch_id


async def _one_group(rows: RowGroup) -> AsyncIterator[RowGroup]:
    yield rows
