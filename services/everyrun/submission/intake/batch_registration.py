"""Register a batch that another caller sent to Extend: store it as a submission with one chunk, already submitted.

The batch then gets results, reports and a balance like any other submission. Its runs have no reserved key, so they are
matched to the inputs by their metadata.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import asyncpg
import msgspec

from everyrun.errors import Conflict, Invalid
from everyrun.extend.client import ExtendError, Page
from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.projection.rules.match import fingerprint
from everyrun.projection.rules.merge import instant
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.chunks import Cutter, chunk_id
from everyrun.submission.dispatch.event_records import SOURCE, redacted
from everyrun.submission.dispatch.transitions import read_inputs
from everyrun.submission.ids import new_submission_id
from everyrun.submission.intake.accept import Intake
from everyrun.submission.intake.parse import RowGroup

_sql = beside(__file__, "intake.sql")
#: How long a registration waits for Extend to say if it has the batch, in seconds.
_TIMEOUT = 3.0
#: Maximum number of inputs in a batch (SDK 1.20.0, workflow_runs/client.py create_batch).
MAX_INPUTS = 1000


class Registered(msgspec.Struct, frozen=True):
    """A registered batch.

    ``expected`` counts its inputs. ``ambiguous`` counts the inputs to which no run can be matched, because another
    input has the same metadata.
    """

    submission_id: str
    batch_id: str
    expected: int
    ambiguous: int


class Registration(NamedTuple):
    """Holds what the queue stores about a registered batch, except its inputs, which are in the log."""

    submission_id: str
    chunk: str
    batch_id: str
    workflow_id: str
    workflow_version: str | None
    expected: int
    content_hash: bytes
    created_at: datetime | None


class BatchKnownError(Conflict):
    """The batch is registered already with other inputs, or Everyrun sent it itself.

    The text says which is the case.
    """


class UnknownBatchError(Invalid):
    """Extend lists no run of the batch, so the registration would never get a result."""


class RunSource(Protocol):
    """The part of :class:`everyrun.extend.client.Extend` that this module uses."""

    async def list_runs(self, within: float, **query: str | int) -> Page:
        """Return a page of run summaries. Raises ExtendError."""


async def check_batch(pool: asyncpg.Pool, extend: RunSource, batch_id: str) -> str | None:
    """Return None if Extend has the batch, else why Extend could not be asked.

    Extend has the batch if it lists a run of it. A batch that is already registered is not checked again. Raises
    UnknownBatchError if Extend answers that it has no run of the batch.
    """
    if await pool.fetchrow(_sql["registered"], batch_id) is not None:
        return None
    try:
        async with asyncio.timeout(_TIMEOUT):
            listed = await extend.list_runs(_TIMEOUT, batchId=batch_id, maxPageSize=1)
    except ExtendError as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {_TIMEOUT:.0f} s"
    if not listed.data and listed.token is None:
        raise UnknownBatchError(
            f"Extend lists no run of {batch_id}: is the id right? A new batch may not be listed yet"
        )
    return None


class BatchTooLargeError(Invalid):
    """There are more inputs than a batch can have, or they are too large for one event; the text says what to do."""


class _RegisteredBeforeError(Exception):
    """The batch was registered before, with the same inputs. Raised to roll back the copied rows."""

    def __init__(self, submission_id: str) -> None:
        self.submission_id = submission_id


async def register(
    pool: asyncpg.Pool,
    settings: Settings,
    rows: AsyncIterator[RowGroup],
    *,
    batch_id: str,
    workflow_id: str,
    workflow_version: str | None,
) -> Registered:
    """Check and store every row. When this returns, the queue holds the batch; the log has it soon after.

    A registration that repeats an earlier one gets the answer to the earlier one. Raises BatchKnownError,
    BatchTooLargeError, BadRowsError and the errors of reading ``rows``. In all these cases nothing is stored.
    """
    intake = Intake(settings, new_submission_id())
    intake.cutter = Cutter(MAX_INPUTS, settings.chunk_max_bytes)
    async with pool.acquire() as connection:
        try:
            async with connection.transaction():
                await intake.copy(connection, rows)
                await intake.refuse_bad(connection)
                _refuse_large(intake)
                inputs = redacted(await read_inputs(connection, intake.submission_id, 1, intake.rows))
                event = events.BatchRegistered(
                    submission_id=intake.submission_id,
                    chunk=chunk_id(intake.submission_id, 1),
                    attempt=1,
                    batch_id=batch_id,
                    workflow_id=workflow_id,
                    workflow_version=workflow_version,
                    registered_at=timestamp(datetime.now(UTC)),
                    inputs=inputs,
                )
                registered = registration_of(event)
                await _refuse_known(connection, batch_id, registered.content_hash)
                if not await insert_registration(connection, registered, announced=False):
                    # Another request has registered the batch since the check above.
                    await _refuse_known(connection, batch_id, registered.content_hash)
            submission_id = intake.submission_id
        except _RegisteredBeforeError as before:
            submission_id = before.submission_id
    return Registered(submission_id, batch_id, len(inputs), count_ambiguous(inputs))


def _refuse_large(intake: Intake) -> None:
    if intake.rows > MAX_INPUTS:
        raise BatchTooLargeError(f"a batch of Extend has at most {MAX_INPUTS} inputs; this upload has {intake.rows}")
    if len(intake.cutter.finish()) > 1:
        max_bytes = intake.settings.chunk_max_bytes
        raise BatchTooLargeError(
            f"the inputs exceed {max_bytes} bytes, the maximum of one event; shorten the texts of files"
        )


async def _refuse_known(connection: Any, batch_id: str, digest: bytes) -> None:
    known = await connection.fetchrow(_sql["registered"], batch_id)
    if known is not None:
        if known["content_hash"] == digest:
            raise _RegisteredBeforeError(known["submission_id"])
        raise BatchKnownError(f"{batch_id} is registered with other inputs, as {known['submission_id']}")
    if await connection.fetchval(_sql["batch_is_known"], batch_id):
        raise BatchKnownError(f"Everyrun knows {batch_id} already: it sent the batch itself, or found its runs")


def registration_of(event: events.BatchRegistered) -> Registration:
    """Return what the queue stores about a ``batch-registered`` event."""
    return Registration(
        event.submission_id,
        event.chunk,
        event.batch_id,
        event.workflow_id,
        event.workflow_version,
        len(event.inputs),
        content_hash(event.workflow_id, event.workflow_version, event.inputs),
        instant(event.registered_at),
    )


async def insert_registration(connection: Any, registered: Registration, *, announced: bool) -> bool:
    """Insert the submission of a registered batch, and its chunk; return False if the queue has the batch already.

    ``announced`` is true if the log has the registration already.
    """
    done = await connection.execute(
        _sql["insert_registered"],
        registered.submission_id,
        registered.workflow_id,
        registered.workflow_version,
        registered.expected,
        registered.batch_id,
        registered.content_hash,
        registered.created_at,
        registered.created_at if announced else None,
    )
    if done == "INSERT 0 0":
        return False
    parameters = (registered.chunk, registered.submission_id, registered.expected, registered.batch_id)
    await connection.execute(_sql["insert_registered_chunk"], *parameters)
    return True


def content_hash(workflow_id: str, workflow_version: str | None, inputs: Sequence[events.Input]) -> bytes:
    """Return a hash that is the same for equal registrations.

    ``inputs`` are redacted, so links that were signed again do not change the hash.
    """
    content = [(given.external_id, given.file, given.metadata) for given in inputs]
    return hashlib.sha256(msgspec.json.encode([workflow_id, workflow_version, content], order="sorted")).digest()


def count_ambiguous(inputs: Sequence[events.Input]) -> int:
    """Return how many inputs have the same metadata as another input."""
    seen = Counter(fingerprint(msgspec.json.encode(given.metadata)) for given in inputs)
    return sum(count for count in seen.values() if count > 1)


def registration_record(row: asyncpg.Record, inputs: Sequence[events.Input]) -> Record:
    """Return the ``batch-registered`` record for a submission's row.

    The same row always gives the same record, so a repeated announcement is recognised.
    """
    created = timestamp(row["created_at"])
    event = events.BatchRegistered(
        submission_id=row["submission_id"],
        chunk=chunk_id(row["submission_id"], 1),
        attempt=1,
        batch_id=row["registered_batch"],
        workflow_id=row["workflow_id"],
        workflow_version=row["workflow_version"],
        registered_at=created,
        inputs=redacted(inputs),
    )
    identifier = f"{event.chunk}/1/batch-registered"
    return record("batches", event, key=event.batch_id, id=identifier, source=SOURCE, time=created)
