"""Make the records of the topics ``results`` and ``reports`` from rows of the result tables. Pure.

The type and the id of an event depend only on the state that it shows. So if a state is published again, the new event
has the same type and the same id, and a consumer can drop it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import BatchProgressed, BatchSettled, ResultChanged, ResultSettled, SubmissionSettled
from everyrun.log.producer import MAX_RECORD_BYTES
from everyrun.projection.rules.attempts import ENDED
from everyrun.projection.rules.merge import SETTLED

Row = asyncpg.Record | dict[str, Any]
#: The CloudEvents source of everything that the processor writes.
SOURCE = "/everyrun/processor"
_NULL = msgspec.Raw(b"null")
#: Maximum number of bytes of a record's value: what Kafka accepts, minus 64 KiB for the headers and the key.
_FITS = MAX_RECORD_BYTES - (64 << 10)
#: Maximum number of characters of failure_reason and of failure_message in an event that would otherwise be too large.
_TEXT_MAX = 10_000
# fmt: off
_PLAIN = (
    "input_id", "external_id", "submission_id", "position", "chunk", "attempt", "batch_id", "run_id", "status",
    "failure_reason", "failure_message", "credits", "source", "version",
)
# fmt: on


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def result_record(row: Row) -> Record:
    """Return the event for a row of the table ``results``, as the statement ``current_rows`` reads it.

    The record always fits the topic. If the row is too large, the run is left out (``run`` is null but ``run_id`` is
    not) and the failure texts are truncated. The table still holds all of them in full.
    """
    whole = _result_record(row)
    if len(whole.value) <= _FITS:
        return whole
    # Postgres adds spaces when it writes jsonb as text, so a run near the limit may be too large when it is read from
    # the table. Without these spaces, it may fit.
    compact = {**row, **{name: row[name] and _compact(row[name]) for name in ("file", "metadata", "run")}}
    whole = _result_record(compact)
    if len(whole.value) <= _FITS:
        return whole
    cut = {name: row[name] and row[name][:_TEXT_MAX] for name in ("failure_reason", "failure_message")}
    return _result_record({**compact, **cut, "run": None})


def _compact(text: bytes) -> bytes:
    try:
        return msgspec.json.format(text, indent=-1)
    except RecursionError:
        # The JSON is nested too deeply for msgspec, though not for Postgres.
        return text


def _result_record(row: Row) -> Record:
    kind = ResultSettled if row["status"] in SETTLED else ResultChanged
    event = kind(
        **{name: row[name] for name in _PLAIN},
        file=msgspec.Raw(row["file"]),
        metadata=msgspec.Raw(row["metadata"]),
        run=msgspec.Raw(row["run"]) if row["run"] is not None else _NULL,
        observed_at=_time(row["observed_at"]),
        settled_at=_time(row["settled_at"]),
    )
    input_id = row["input_id"]
    return record(
        "results",
        event,
        key=input_id,
        id=f"{input_id}/{row['version']}",
        source=SOURCE,
        time=_time(row["observed_at"]) or timestamp(0),
    )


def batch_record(row: Row, now: float) -> Record:
    """Return the event for a row that the statement ``current_attempts`` read; ``now`` is Unix time in seconds."""
    kind = BatchSettled if row["state"] in ENDED else BatchProgressed
    event = kind(
        submission_id=row["submission_id"],
        chunk=row["chunk"],
        attempt=row["attempt"],
        batch_id=row["batch_id"],
        state=row["state"],
        expected=row["expected"],
        counts=msgspec.json.decode(row["counts"]),
        runs_observed=row["runs_observed"],
        duplicates=row["duplicates"],
        superseded=row["superseded"],
        settled_at=_time(row["settled_at"]),
    )
    key = row["batch_id"] or row["chunk"]
    return record("reports", event, key=key, id=_id(key, event), source=SOURCE, time=timestamp(now))


def submission_record(row: Row, now: float) -> Record:
    """Return the event for a settled submission; ``now`` is Unix time in seconds."""
    event = SubmissionSettled(
        submission_id=row["submission_id"],
        workflow_id=row["workflow_id"],
        expected=row["expected"],
        counts=dict(sorted(msgspec.json.decode(row["counts"]).items())),
    )
    key = row["submission_id"]
    return record("reports", event, key=key, id=_id(key, event), source=SOURCE, time=timestamp(now))


def _id(key: str, event: msgspec.Struct) -> str:
    return f"{key}/{hashlib.blake2b(msgspec.json.encode(event, order='sorted'), digest_size=12).hexdigest()}"
