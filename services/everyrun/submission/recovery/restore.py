"""Restore submissions, chunks and inputs that the queue lost, as far as the log has them.

The event ``submission-accepted`` describes the submission. The event ``batch-requested``, which is in the log before
Extend is called, contains the inputs of a chunk, without secrets. So does ``inputs-retried`` for the chunk of a retry.
Inputs that were never sent are in no event. They are
counted as lost, and a repeated upload restores them (:mod:`everyrun.submission.intake.refill`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from everyrun.log import events
from everyrun.log.keys import retry_of
from everyrun.log.reading import read_polls
from everyrun.log.upcast import upcast
from everyrun.projection.rules.merge import instant
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.dispatch.protocol import FILES_LOST_UNSENT
from everyrun.submission.retry.rules import insert_rules
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "recovery.sql")
_decode = msgspec.json.Decoder(events.BatchEvent).decode
_encode = msgspec.json.Encoder().encode


class RecordAddress(NamedTuple):
    """The partition and offset of a record of ``batches``."""

    partition: int
    offset: int


async def restore_submissions(connection: Any, accepted: Iterable[events.SubmissionAccepted]) -> list[str]:
    """Insert the submissions that the queue does not have; return their ids.

    Must be called in a transaction.
    """
    logged = {event.submission_id: event for event in accepted}
    if not logged:
        return []
    known = {row["submission_id"] for row in await connection.fetch(_sql["submissions_known"], sorted(logged))}
    missing = sorted(logged.keys() - known)
    for submission_id in missing:
        event = logged[submission_id]
        await connection.execute(
            _sql["restore_submission"],
            submission_id,
            event.workflow_id,
            event.workflow_version,
            event.priority,
            event.expected,
            event.batches,
            bytes.fromhex(event.content_hash),
            instant(event.created_at),
            event.idempotency_key,
            event.max_open_inputs,
            event.synced_source,
        )
        if event.rules is not None:
            await insert_rules(connection, submission_id, event.rules)
    return missing


async def restore_chunks(connection: Any, settings: Settings, addresses: Mapping[str, RecordAddress]) -> set[str]:
    """Insert the chunks that the queue does not have, with their inputs; return the ids of their submissions.

    For each chunk, ``addresses`` contains the address of a record with the chunk's inputs. The record is read again
    here, so that only one chunk at a time is in memory. Inputs that the queue has stay unchanged. Must be called in a
    transaction. Raises aiokafka.errors.KafkaError.
    """
    missing = [row["chunk"] for row in await connection.fetch(_sql["chunks_missing"], sorted(addresses))]
    restored = set()
    async for event in _events_at(settings, [addresses[chunk] for chunk in missing]):
        if not await connection.fetch(_sql["submissions_known"], [event.submission_id]):
            _log.warning("a chunk of a submission that the log does not know", chunk=event.chunk)
            continue
        await _restore_chunk(connection, event)
        restored.add(event.submission_id)
    return restored


async def _restore_chunk(connection: Any, event: Any) -> None:
    positions, first_tries = _positions(event)
    chunk = (event.chunk, event.submission_id, min(positions), max(positions), retry_of(event.chunk))
    await connection.execute(_sql["restore_chunk"], *chunk)
    await connection.execute(
        _sql["restore_inputs"],
        event.submission_id,
        positions,
        first_tries,
        [given.external_id for given in event.inputs],
        [_encode(given.file).decode() for given in event.inputs],
        [_encode(given.metadata).decode() for given in event.inputs],
    )
    await connection.execute(_sql["restore_synced"], event.submission_id, positions)
    await connection.execute(_sql["hold_lost_files"], [event.chunk], FILES_LOST_UNSENT)


def retry_row(event: events.InputsRetried) -> tuple[Any, ...]:
    """Return the values of the statement ``restore_retry``. Pure."""
    head = (event.submission_id, event.retry, event.total, _encode(event.filter).decode())
    return (*head, event.by, event.reason, instant(event.requested_at))


def _positions(event: Any) -> tuple[list[int], list[int | None]]:
    """Return the positions of the inputs in the queue, and for new tries their positions in the submission. Pure."""
    given = [given.position for given in event.inputs]
    if isinstance(event, events.InputsRetried):
        return list(range(event.first_position, event.first_position + len(given))), list(given)
    return given, [None] * len(given)


async def _events_at(settings: Settings, addresses: Iterable[RecordAddress]) -> AsyncIterator[Any]:
    wanted = defaultdict(set)
    for address in addresses:
        wanted[address.partition].add(address.offset)
    for partition, offsets in sorted(wanted.items()):
        async for poll in read_polls(settings, ("batches", partition), min(offsets), max(offsets) + 1):
            for record in poll.records:
                if record.offset in offsets:
                    yield _decode(upcast(record.headers, record.value or b""))
