"""Registering a batch that somebody else submitted: a submission whose one chunk was sent already, by others.

So it has results, reports and balance like any other; its runs are matched by their metadata.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec

from everyrun.errors import Conflict, Invalid
from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.projection.rules.match import fingerprint
from everyrun.projection.rules.merge import instant
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.dispatch.event_records import SOURCE
from everyrun.submission.intake.accept import Intake, new_submission_id
from everyrun.submission.intake.chunks import Cutter, chunk_id
from everyrun.submission.intake.parse import Piece
from everyrun.submission.intake.rows import redact_file

_sql = beside(__file__, "queue.sql")
#: Inputs of a batch at most (SDK 1.20.0, workflow_runs/client.py create_batch).
MOST = 1000


class Registered(msgspec.Struct, frozen=True):
    """A batch that is accounted for from now on. ``ambiguous`` inputs have another's metadata: no run is theirs."""

    submission_id: str
    batch_id: str
    expected: int
    ambiguous: int


class Registration(NamedTuple):
    """What the queue keeps of a registered batch: its inputs are in the log."""

    submission_id: str
    chunk: str
    batch_id: str
    workflow_id: str
    workflow_version: str | None
    expected: int
    content_hash: bytes
    created_at: datetime | None


class BatchKnownError(Conflict):
    """The batch is known: registered with other content, or sent by Everyrun itself. The text says which."""


class BatchTooLargeError(Invalid):
    """More inputs than a batch has, or more bytes than one event holds; the text says what to do."""


class _SeenError(Exception):
    """The same was registered before: what was copied is taken back."""

    def __init__(self, submission_id: str) -> None:
        self.submission_id = submission_id


async def register(
    pool: asyncpg.Pool,
    settings: Settings,
    rows: AsyncIterator[Piece],
    *,
    batch_id: str,
    workflow_id: str,
    workflow_version: str | None,
) -> Registered:
    """Check and keep every row; the batch is in the queue when this returns, and in the log soon after.

    The same again returns the first one's answer. Raises BatchKnownError, BatchTooLargeError, BadRowsError and what
    reading ``rows`` raises; nothing is kept then.
    """
    intake = Intake(settings, new_submission_id())
    intake.cutter = Cutter(MOST, settings.chunk_max_bytes)
    async with pool.acquire() as connection:
        try:
            async with connection.transaction():
                await intake.copy(connection, rows)
                await intake.refuse_bad(connection)
                _refuse_large(intake)
                records = await connection.fetch(_sql["chunk_inputs"], intake.submission_id, 1, intake.rows)
                inputs = inputs_of(intake.submission_id, records)
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
                given = registration(event)
                await _refuse_known(connection, batch_id, given.content_hash)
                if not await keep(connection, given, announced=False):
                    # Registered by another call at this very moment.
                    await _refuse_known(connection, batch_id, given.content_hash)
            submission_id = intake.submission_id
        except _SeenError as seen:
            submission_id = seen.submission_id
    return Registered(submission_id, batch_id, len(inputs), ambiguous(inputs))


def _refuse_large(intake: Intake) -> None:
    if intake.rows > MOST:
        raise BatchTooLargeError(f"a batch of Extend has at most {MOST} inputs; these are {intake.rows}")
    if len(intake.cutter.finish()) > 1:
        most = intake.settings.chunk_max_bytes
        raise BatchTooLargeError(
            f"the inputs are more than {most} bytes, which one event holds; shorten the texts of files"
        )


async def _refuse_known(connection: Any, batch_id: str, digest: bytes) -> None:
    known = await connection.fetchrow(_sql["registered"], batch_id)
    if known is not None:
        if known["content_hash"] == digest:
            raise _SeenError(known["submission_id"])
        raise BatchKnownError(f"{batch_id} is registered with other inputs, as {known['submission_id']}")
    if await connection.fetchval(_sql["batch_is_known"], batch_id):
        raise BatchKnownError(f"{batch_id} is a batch that Everyrun sent, or knows of already")


def registration(event: events.BatchRegistered) -> Registration:
    """What is kept of a ``batch-registered``."""
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


async def keep(connection: Any, given: Registration, *, announced: bool) -> bool:
    """Put the submission of a registered batch, and its chunk, into the queue; False where it is there."""
    done = await connection.execute(
        _sql["insert_registered"],
        given.submission_id,
        given.workflow_id,
        given.workflow_version,
        given.expected,
        given.batch_id,
        given.content_hash,
        given.created_at,
        given.created_at if announced else None,
    )
    if done == "INSERT 0 0":
        return False
    parameters = (given.chunk, given.submission_id, given.expected, given.batch_id)
    await connection.execute(_sql["insert_registered_chunk"], *parameters)
    return True


def inputs_of(submission_id: str, records: Iterable[asyncpg.Record]) -> list[events.Input]:
    """The inputs as the log shows them, out of the queue."""
    return [
        events.Input(
            input_id=f"{submission_id}:{r['external_id']}",
            external_id=r["external_id"],
            position=r["position"],
            file=redact_file(msgspec.json.decode(r["file"])),
            metadata=msgspec.json.decode(r["metadata"]),
        )
        for r in records
    ]


def content_hash(workflow_id: str, workflow_version: str | None, inputs: Sequence[events.Input]) -> bytes:
    """Equal for equal registrations: of what the log shows, so that a link signed anew makes no difference."""
    content = [(given.external_id, given.file, given.metadata) for given in inputs]
    return hashlib.sha256(msgspec.json.encode([workflow_id, workflow_version, content], order="sorted")).digest()


def ambiguous(inputs: Sequence[events.Input]) -> int:
    """How many inputs have metadata equal to another's."""
    seen = Counter(fingerprint(msgspec.json.encode(given.metadata)) for given in inputs)
    return sum(count for count in seen.values() if count > 1)


def announcement(row: asyncpg.Record, records: Iterable[asyncpg.Record]) -> Record:
    """The record of ``batch-registered``, out of the queue; the same however often it is made."""
    created = timestamp(row["created_at"])
    event = events.BatchRegistered(
        submission_id=row["submission_id"],
        chunk=chunk_id(row["submission_id"], 1),
        attempt=1,
        batch_id=row["registered_batch"],
        workflow_id=row["workflow_id"],
        workflow_version=row["workflow_version"],
        registered_at=created,
        inputs=inputs_of(row["submission_id"], records),
    )
    identifier = f"{event.chunk}/1/batch-registered"
    return record("batches", event, key=event.batch_id, id=identifier, source=SOURCE, time=created)
