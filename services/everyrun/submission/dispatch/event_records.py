"""The events that a step of the protocol says, as records for ``batches``. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.keys import lineage
from everyrun.submission.dispatch.classify import Rejected, Taken
from everyrun.submission.dispatch.cutting import part_id
from everyrun.submission.dispatch.protocol import Adopted, Answered, Discarded, Evidence, Happening, Resent, Say, Step
from everyrun.submission.intake.rows import redact_file

SOURCE = "/everyrun/submission"

#: Events that carry their inputs whole, or name them.
WHOLE = frozenset({"batch-submitted", "batch-rejected", "batch-cut", "doubt-adopted", "doubt-discarded"})


def requested(
    row: Mapping[str, Any], inputs: Sequence[events.Input], installation: str, deadline: datetime, now: datetime
) -> Record:
    """batch-requested, for a chunk that was claimed; ``row`` is as the statement ``attempt`` reads it."""
    event = events.BatchRequested(
        **_head(row, row["attempt"]),
        **_sent_to(row),
        installation=installation,
        deadline=timestamp(deadline),
        inputs=_shown(inputs),
    )
    return _record(row, "batch-requested", row["attempt"], event, timestamp(now))


def said(
    row: Mapping[str, Any], done: Step, happening: Happening, inputs: Sequence[events.Input], now: datetime
) -> list[Record]:
    """The records of a step; ``inputs`` are needed where one of them is of WHOLE."""
    return [_said(row, say, done, happening, inputs, timestamp(now)) for say in done.say]


def _said(
    row: Mapping[str, Any], say: Say, done: Step, happening: Any, inputs: Sequence[events.Input], now: str
) -> Record:
    head = _head(row, say.attempt)
    whole: dict[str, Any] = {**_sent_to(row), "inputs": _shown(inputs)}
    reason = done.after.reason or "an earlier attempt was taken"
    detail: tuple[str, ...] = ()
    event: msgspec.Struct
    match say.kind:
        case "batch-returned":
            event = events.BatchReturned(**head, reason=reason)
        case "batch-in-doubt":
            event = events.BatchInDoubt(**head, reason=reason)
        case "batch-rejected":
            assert isinstance(happening, Answered)
            assert isinstance(happening.outcome, Rejected)
            refusal = {name: getattr(happening.outcome, name) for name in ("status", "code", "message")}
            event = events.BatchRejected(**head, **whole, **refusal, rejected_at=now)
        case "batch-cut":
            assert isinstance(happening, Answered)
            assert isinstance(happening.outcome, Rejected)
            refusal = {name: getattr(happening.outcome, name) for name in ("status", "code", "message")}
            ids = [given.input_id for given in inputs]
            event = events.BatchCut(**head, **refusal, input_ids=ids, parts=parts_of(row, done))
        case "batch-submitted":
            batch_id, proof = _proof(happening)
            detail = (batch_id,)
            event = events.BatchSubmitted(**head, **whole, batch_id=batch_id, evidence=proof, submitted_at=now)
        case "doubt-adopted":
            assert isinstance(happening, Adopted)
            batch_id, proof = happening.batch_id, f"run {happening.run_id}"
            detail = (batch_id, happening.by, happening.why)
            decided: dict[str, Any] = {"by": happening.by, "reason": happening.why, "adopted_at": now}
            event = events.DoubtAdopted(**head, **whole, **decided, batch_id=batch_id, evidence=proof)
        case "doubt-resent":
            by = happening.by if isinstance(happening, Resent) else None
            detail = (by, reason) if by else ()
            event = events.DoubtResent(**head, reason=reason, resends=done.after.resends, by=by)
        case "doubt-discarded":
            assert isinstance(happening, Discarded)
            detail = (happening.by, happening.why)
            event = events.DoubtDiscarded(**head, **whole, by=happening.by, reason=happening.why, discarded_at=now)
        case "batch-requested":
            raise ValueError("batch-requested is said by requested()")
    return _record(row, say.kind, say.attempt, event, now, *detail)


def parts_of(row: Mapping[str, Any], done: Step) -> list[events.Part]:
    """Return the chunks that a step cut a chunk into; ``row`` is the chunk's."""
    start = row["first_position"]
    return [
        events.Part(part_id(row["chunk"], number), start + first, start + last)
        for number, (first, last) in enumerate(done.parts, 1)
    ]


def _proof(happening: Any) -> tuple[str, str]:
    """The batchId, and what proves it."""
    if isinstance(happening, Evidence):
        return happening.batch_id, f"run {happening.run_id}"
    assert isinstance(happening, Answered)
    assert isinstance(happening.outcome, Taken)
    return happening.outcome.batch_id, "answer"


def _record(row: Mapping[str, Any], kind: str, attempt: int, event: msgspec.Struct, now: str, *detail: str) -> Record:
    identifier = f"{row['chunk']}/{attempt}/{kind}"
    if kind == "batch-submitted":
        identifier += f"/{detail[0]}"
    elif detail:
        identifier += f"/{digest(*detail)}"
    key, subject = lineage(row["chunk"]), row["chunk"]
    return record("batches", event, key=key, id=identifier, source=SOURCE, time=now, subject=subject)


def digest(*texts: str) -> str:
    """Short text for an event's id that stands for these: another decision is another event, a repeated one is not."""
    return hashlib.blake2b(msgspec.json.encode(texts), digest_size=8).hexdigest()


def _head(row: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    return {"submission_id": row["submission_id"], "chunk": row["chunk"], "attempt": attempt}


def _sent_to(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("workflow_id", "workflow_version", "priority")}


def _shown(inputs: Sequence[events.Input]) -> list[events.Input]:
    return [replace(given, file=redact_file(given.file)) for given in inputs]
