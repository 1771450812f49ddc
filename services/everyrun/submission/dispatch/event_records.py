"""Build the records for the topic ``batches`` from the steps of the dispatch protocol. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.keys import lineage
from everyrun.store.sql import Row
from everyrun.submission.chunks import part_id
from everyrun.submission.dispatch.classify import Accepted, Refused
from everyrun.submission.dispatch.protocol import (
    Adopted,
    Answered,
    CutRequested,
    Discarded,
    EvidenceFound,
    Resent,
    Step,
    StepEvent,
    Trigger,
)
from everyrun.submission.intake.rows import redact_file

SOURCE = "/everyrun/submission"
#: The code in batch-cut of a chunk that was cut because only some of its inputs were cancelled.
CANCELLED_IN_PART = "CANCELLED_IN_PART"

#: The types of events that contain their inputs, or the ids of their inputs.
WITH_INPUTS = frozenset(
    {"batch-submitted", "batch-rejected", "batch-cut", "doubt-adopted", "doubt-discarded", "batch-cancelled"}
)


class CancelOrder(msgspec.Struct, frozen=True):
    """A cancellation that a person requested: its id, who decided, and why."""

    cancellation_id: str
    by: str
    why: str


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk with its newest attempt and the workflow of its submission.

    The SQL statements ``attempt`` and ``lock_chunk`` return rows with these fields.
    """

    chunk: str
    submission_id: str
    attempt: int
    workflow_id: str
    workflow_version: str | None
    priority: int | None
    first_position: int
    last_position: int

    @classmethod
    def of(cls, row: Row) -> ChunkRow:
        """Return the chunk in a row that one of these statements returned."""
        return cls(**{name: row[name] for name in cls.__struct_fields__})


def batch_requested(
    row: ChunkRow, inputs: Sequence[events.Input], installation: str, deadline: datetime, now: datetime
) -> Record:
    """Return the record of batch-requested for a chunk that was just claimed."""
    event = events.BatchRequested(
        **_head(row, row.attempt),
        **_workflow(row),
        installation=installation,
        deadline=timestamp(deadline),
        inputs=redacted(inputs),
    )
    return _record(row, "batch-requested", row.attempt, event, timestamp(now))


def step_records(
    row: ChunkRow,
    done: Step,
    trigger: Trigger,
    inputs: Sequence[events.Input],
    now: datetime,
    order: CancelOrder | None = None,
) -> list[Record]:
    """Return the records of a step.

    ``inputs`` must be the chunk's inputs if one of the events is in WITH_INPUTS, and may be empty otherwise. ``order``
    must be given if one of the events is batch-cancelled.
    """
    return [_step_record(row, event, done, trigger, inputs, timestamp(now), order) for event in done.events]


def _step_record(
    row: ChunkRow,
    step_event: StepEvent,
    done: Step,
    trigger: Any,
    inputs: Sequence[events.Input],
    now: str,
    order: CancelOrder | None,
) -> Record:
    head = _head(row, step_event.attempt)
    whole: dict[str, Any] = {**_workflow(row), "inputs": redacted(inputs)}
    reason = done.after.reason or "an earlier attempt was accepted"
    detail: tuple[str, ...] = ()
    event: msgspec.Struct
    match step_event.kind:
        case "batch-returned":
            event = events.BatchReturned(**head, reason=reason)
        case "batch-in-doubt":
            event = events.BatchInDoubt(**head, reason=reason)
        case "batch-rejected":
            event = events.BatchRejected(**head, **whole, **_refusal(trigger), rejected_at=now)
        case "batch-cut":
            ids = [given.input_id for given in inputs]
            event = events.BatchCut(**head, **_refusal(trigger), input_ids=ids, parts=parts_of(row, done))
        case "batch-submitted":
            batch_id, proof = _proof(trigger)
            detail = (batch_id,)
            event = events.BatchSubmitted(**head, **whole, batch_id=batch_id, evidence=proof, submitted_at=now)
        case "doubt-adopted":
            assert isinstance(trigger, Adopted)
            batch_id, proof = trigger.batch_id, f"run {trigger.run_id}"
            detail = (batch_id, trigger.by, trigger.why)
            decided: dict[str, Any] = {"by": trigger.by, "reason": trigger.why, "adopted_at": now}
            event = events.DoubtAdopted(**head, **whole, **decided, batch_id=batch_id, evidence=proof)
        case "doubt-resent":
            by = trigger.by if isinstance(trigger, Resent) else None
            detail = (by, reason) if by else ()
            event = events.DoubtResent(**head, reason=reason, resends=done.after.resends, by=by)
        case "doubt-discarded":
            assert isinstance(trigger, Discarded)
            detail = (trigger.by, trigger.why)
            event = events.DoubtDiscarded(**head, **whole, by=trigger.by, reason=trigger.why, discarded_at=now)
        case "batch-cancelled":
            assert order is not None
            detail = (order.cancellation_id,)
            decided = {"cancellation_id": order.cancellation_id, "by": order.by, "reason": order.why}
            event = events.BatchCancelled(**head, **whole, **decided, cancelled_at=now)
        case "batch-requested":
            raise ValueError("batch_requested() makes batch-requested")
    return _record(row, step_event.kind, step_event.attempt, event, now, *detail)


def parts_of(row: ChunkRow, done: Step) -> list[events.Part]:
    """Return the parts into which a step cuts the chunk of ``row``."""
    start = row.first_position
    return [
        events.Part(part_id(row.chunk, number), start + first, start + last)
        for number, (first, last) in enumerate(done.parts, 1)
    ]


def _refusal(trigger: Any) -> dict[str, Any]:
    if isinstance(trigger, CutRequested):
        return {"status": 0, "code": CANCELLED_IN_PART, "message": "only some of its inputs were cancelled"}
    assert isinstance(trigger, Answered)
    assert isinstance(trigger.outcome, Refused)
    return {name: getattr(trigger.outcome, name) for name in ("status", "code", "message")}


def _proof(trigger: Any) -> tuple[str, str]:
    """Return the batchId, and what proves that the attempt became that batch."""
    if isinstance(trigger, EvidenceFound):
        return trigger.batch_id, f"run {trigger.run_id}"
    assert isinstance(trigger, Answered)
    assert isinstance(trigger.outcome, Accepted)
    return trigger.outcome.batch_id, "answer"


def _record(row: ChunkRow, kind: str, attempt: int, event: msgspec.Struct, now: str, *detail: str) -> Record:
    identifier = f"{row.chunk}/{attempt}/{kind}"
    if kind == "batch-submitted":
        identifier += f"/{detail[0]}"
    elif detail:
        identifier += f"/{digest(*detail)}"
    key, subject = lineage(row.chunk), row.chunk
    return record("batches", event, key=key, id=identifier, source=SOURCE, time=now, subject=subject)


def digest(*texts: str) -> str:
    """Return a short hash for the id of an event.

    If a decision is repeated, its event gets the same id again. A different decision gets a different id.
    """
    return hashlib.blake2b(msgspec.json.encode(texts), digest_size=8).hexdigest()


def _head(row: ChunkRow, attempt: int) -> dict[str, Any]:
    return {"submission_id": row.submission_id, "chunk": row.chunk, "attempt": attempt}


def _workflow(row: ChunkRow) -> dict[str, Any]:
    return {"workflow_id": row.workflow_id, "workflow_version": row.workflow_version, "priority": row.priority}


def redacted(inputs: Sequence[events.Input]) -> list[events.Input]:
    """Return the inputs as the log shows them: with files from which query strings and passwords are removed."""
    return [replace(given, file=redact_file(given.file)) for given in inputs]
