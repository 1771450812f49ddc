"""Reading and writing the tables for :mod:`everyrun.projection.apply`: records of Postgres to and from our types."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import msgspec
from msgspec.structs import replace

from everyrun.log import events
from everyrun.projection.decode import Fact, storable
from everyrun.projection.rules.merge import Binding, Run, instant
from everyrun.projection.rules.row_version import order_in
from everyrun.projection.rules.run_selection import Row, home_of

SCHEMA = "everyrun"

# fmt: off
RESULT_COLUMNS = [
    "input_id", "external_id", "submission_id", "batch_id", "position", "chunk", "attempt", "file",
    "metadata", "run_id", "status", "failure_reason", "failure_message", "run", "credits", "source",
    "observed_at", "settled_at", "version",
]
STAGED_COLUMNS = [
    "input_id", "expected_version", "batch_id", "chunk", "attempt", "run_id", "status", "failure_reason",
    "failure_message", "run", "credits", "source", "observed_at", "settled_at", "version",
]
DUPLICATE_COLUMNS = [
    "run_id", "input_id", "batch_id", "chunk", "attempt", "status", "failure_reason", "failure_message",
    "run", "credits", "source", "observed_at", "settled_at", "version",
]
UNMATCHED_COLUMNS = [
    "run_id", "batch_id", "metadata", "status", "reason", "first_seen", "input_id", "installation", "chunk",
    "attempt", "failure_reason", "failure_message", "run", "credits", "source", "observed_at", "settled_at",
    "version", "fingerprints", "bindings",
]
# fmt: on


async def setup_connection(connection: asyncpg.Connection) -> None:
    """jsonb comes and goes as the bytes of its text, in binary, so that COPY takes it; names are found in everyrun."""
    await connection.set_type_codec(
        "jsonb",
        encoder=lambda text: b"\x01" + text,
        decoder=lambda data: bytes(data[1:]),
        schema="pg_catalog",
        format="binary",
    )


def row_of(record: asyncpg.Record) -> Row:
    """A row of ``results`` as ``rows_by_input`` reads it: its columns are Row's fields, in their order."""
    return Row._make(record.values())


def run_of(record: asyncpg.Record) -> Run:
    """A known run, out of ``results``, ``duplicate_runs`` or ``unmatched_runs``."""
    binding = None
    if record["input_id"] is not None:
        installation = record.get("installation") or ""
        binding = Binding(record["input_id"], record["chunk"], record["attempt"], installation)
    return Run(
        run_id=record["run_id"],
        batch_id=record["batch_id"],
        binding=binding,
        status=record["status"],
        order=order_in(record["version"]) or record["version"],
        observed_at=record["observed_at"],
        settled_at=record["settled_at"],
        source=record["source"],
        failure_reason=record["failure_reason"],
        failure_message=record["failure_message"],
        credits=record["credits"],
        metadata=record.get("metadata") or b"{}",
        run=record["run"],
    )


def run_values(run: Run) -> tuple[Any, ...]:
    """The values of the columns from ``status`` to ``settled_at`` that a run gives."""
    return (
        run.status,
        run.failure_reason,
        run.failure_message,
        run.run,
        run.credits,
        run.source,
        run.observed_at,
        run.settled_at,
    )


def duplicate(run: Run, row: Row, version: str) -> tuple[Any, ...]:
    """The values of DUPLICATE_COLUMNS for a run that does not stand."""
    return (run.run_id, row.input_id, run.batch_id, *home_of(run, row), *run_values(run), version)


def unmatched(
    run: Run, reason: str, first_seen: Any, fingerprints: Sequence[str], bindings: Sequence[Binding]
) -> tuple[Any, ...]:
    """The values of UNMATCHED_COLUMNS for a run that no input is known for."""
    b = run.binding
    bound = (b.input_id, b.installation, b.chunk, b.attempt) if b else (None, None, None, None)
    head = (run.run_id, run.batch_id, run.metadata, run.status, reason, first_seen, *bound)
    return (*head, *run_values(run)[1:], run.order, fingerprints, json_of(bindings))


async def copy(
    connection: asyncpg.Connection,
    table: str,
    columns: Sequence[str],
    values: Iterable[tuple[Any, ...]],
    schema: str | None = None,
) -> None:
    """COPY the values into a table."""
    await connection.copy_records_to_table(table, records=values, columns=list(columns), schema_name=schema)


def counts_of(raw: bytes) -> dict[str, int]:
    """A ``counts`` column as a mapping."""
    counts: dict[str, int] = msgspec.json.decode(raw)
    return counts


def json_of(value: Any) -> bytes:
    """A value as the text of a jsonb column."""
    return msgspec.json.encode(value)


def bound(run: Run, binding: Binding, batch_id: str) -> Run:
    """Return the run as one of this input and this batch, whatever it says of either itself."""
    return replace(run, binding=binding, batch_id=batch_id)


def submission_arrays(brought: Sequence[Any]) -> tuple[list[Any], ...]:
    """The columns of ``insert_submissions`` for submission-accepted and batch-registered events."""
    return tuple(list(column) for column in zip(*map(_submission, brought), strict=True))


def _submission(event: Any) -> tuple[Any, ...]:
    head = (event.submission_id, event.workflow_id, event.workflow_version)
    if isinstance(event, events.BatchRegistered):
        return (*head, None, len(event.inputs), instant(event.registered_at))
    return (*head, event.priority, event.expected, instant(event.created_at))


def quarantine_change(fact: Fact) -> tuple[str, tuple[Any, ...]]:
    """The statement that an event of the topic ``quarantine`` asks for, and its parameters."""
    event: Any = fact.event
    if isinstance(event, events.QuarantineDiscarded):
        return "decide_quarantine", (event.source, "DISCARDED", None, fact.time)
    if isinstance(event, events.QuarantineRetried):
        still = event.detail.replace("\x00", "\ufffd") if event.outcome == "not-understood" else None
        return "decide_quarantine", (event.source, "OPEN" if still else "RETRIED", still, fact.time)
    position = (event.source, event.topic, event.partition, event.offset)
    headers = storable(json_of(event.headers))
    reason = event.reason.replace("\x00", "\ufffd")
    key = None if event.key is None else base64.b64decode(event.key)
    return "insert_quarantine", (*position, reason, base64.b64decode(event.raw), headers, key, fact.time)
