"""Read and write the rows of the result tables. Functions that write do so in the caller's transaction.

This module has over 300 lines, because the columns of each table and the statements that use them belong together.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec
from msgspec.structs import replace

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent
from everyrun.projection.rules import attempts, decisions
from everyrun.projection.rules.merge import SETTLED, AttemptKey, Binding, Run, instant
from everyrun.projection.rules.run_selection import CounterDeltas, Row, Selection, attempt_of, order_in, version_of
from everyrun.store.sql import beside
from everyrun.store.storable import storable_json, storable_text

SCHEMA = "everyrun"

_sql = beside(__file__, "apply.sql")

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
OTHER_RUN_COLUMNS = [
    "run_id", "input_id", "batch_id", "chunk", "attempt", "status", "failure_reason", "failure_message",
    "run", "credits", "source", "observed_at", "settled_at", "version", "superseded",
]
UNMATCHED_COLUMNS = [
    "run_id", "batch_id", "metadata", "status", "reason", "first_seen", "input_id", "installation", "chunk",
    "attempt", "failure_reason", "failure_message", "run", "credits", "source", "observed_at", "settled_at",
    "version", "fingerprints", "bindings",
]
# fmt: on


class ConflictError(Exception):
    """Another transaction changed a row after this transaction had read the row. Retry this transaction."""


class InputState(NamedTuple):
    """The values to write to the row of an input.

    If the input has a run, ``selection`` decides the columns that depend on the run: batch, attempt, status, version
    and so on. ``row`` decides the others, and decides all columns of an input without a run.

    ``reason`` and ``message`` say why an input without a run was refused or cancelled.
    """

    row: Row
    reason: str | None = None
    message: str | None = None
    selection: Selection | None = None

    @property
    def version(self) -> str:
        """The version that the row will have."""
        return self.row.version if self.selection is None else self.selection.version

    @property
    def run(self) -> bytes | None:
        """The JSON text of the current run; None if there is none."""
        return self._current.run if self._current else None

    @property
    def _current(self) -> Run | None:
        return None if self.selection is None else self.selection.current

    def values(self) -> tuple[Any, ...]:
        """Return the values of RESULT_COLUMNS."""
        row = self.row
        batch_id, attempt, run_id, rest = self._changing()
        head = (row.input_id, row.external_id, row.submission_id, batch_id, row.position, *attempt)
        return (*head, row.file, row.metadata, run_id, *rest)

    def staged(self, expected_version: str) -> tuple[Any, ...]:
        """Return the values of STAGED_COLUMNS. The row is updated only if it still has ``expected_version``."""
        batch_id, attempt, run_id, rest = self._changing()
        return (self.row.input_id, expected_version, batch_id, *attempt, run_id, *rest)

    def _changing(self) -> tuple[str | None, AttemptKey, str | None, tuple[Any, ...]]:
        row = self.row
        run = self._current
        if run is not None:
            return run.batch_id, attempt_of(run, row), run.run_id, (*_run_values(run), self.version)
        settled_at = row.observed_at if row.status in SETTLED else None
        rest = (row.status, self.reason, self.message, None, None, None, row.observed_at, settled_at, self.version)
        return row.batch_id, row.attempt_key, None, rest


async def setup_connection(connection: asyncpg.Connection) -> None:
    """Make the connection read and write jsonb as bytes of JSON text. COPY needs the binary format."""
    await connection.set_type_codec(
        "jsonb",
        encoder=lambda text: b"\x01" + text,
        decoder=lambda data: bytes(data[1:]),
        schema="pg_catalog",
        format="binary",
    )


def row_of(record: asyncpg.Record) -> Row:
    """Return a record of the statement ``rows_by_input`` as a Row.

    The columns of the statement are the fields of Row, in the same order.
    """
    return Row._make(record.values())


def run_of(record: asyncpg.Record) -> Run:
    """Return the run in a row of ``results``, ``other_runs`` or ``unmatched_runs``."""
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


def bound(run: Run, binding: Binding, batch_id: str) -> Run:
    """Return a copy of the run with this input and this batch, instead of those that the run itself names."""
    return replace(run, binding=binding, batch_id=batch_id)


async def copy(
    connection: asyncpg.Connection,
    table: str,
    columns: Sequence[str],
    values: Iterable[tuple[Any, ...]],
    schema: str | None = None,
) -> None:
    """COPY the values into a table."""
    await connection.copy_records_to_table(table, records=values, columns=list(columns), schema_name=schema)


async def write_results(
    connection: asyncpg.Connection,
    states: Mapping[str, InputState],
    new: Collection[str],
    versions: Mapping[str, str],
) -> None:
    """Insert the rows of the inputs in ``new``, and update the rows of the others.

    ``versions`` holds the version of each existing row, by input id. Raises ConflictError if a row has another version.
    """
    if new:
        await copy(connection, "results", RESULT_COLUMNS, (states[input_id].values() for input_id in sorted(new)))
    staged = [states[i].staged(versions[i]) for i in sorted(states.keys() - set(new))]
    if staged:
        await copy(connection, "staged_results", STAGED_COLUMNS, staged)
        done = await connection.execute(_sql["update_results"])
        if done != f"UPDATE {len(staged)}":
            raise ConflictError(f"updated {done.removeprefix('UPDATE ')} of {len(staged)} rows")


async def write_other_runs(
    connection: asyncpg.Connection, selections: Sequence[Selection], contested: Collection[str]
) -> None:
    """Replace the duplicate and the superseded runs of the contested inputs."""
    if not contested:
        return
    await connection.execute(_sql["delete_other_runs"], sorted(contested))
    values = [
        (
            *(run.run_id, selection.row.input_id, run.batch_id),
            *attempt_of(run, selection.row),
            *_run_values(run),
            version_of(run),
            selection.is_superseded(run),
        )
        for selection in selections
        if selection.row.input_id in contested
        for run in selection.others
    ]
    if values:
        await copy(connection, "other_runs", OTHER_RUN_COLUMNS, values)


class UnmatchedRun(NamedTuple):
    """A run that matches no input so far, the reason, and all fingerprints and bindings that the run was seen with."""

    run: Run
    reason: str
    first_seen: datetime
    fingerprints: Sequence[str]
    bindings: Sequence[Binding]

    def values(self) -> tuple[Any, ...]:
        """Return the values of UNMATCHED_COLUMNS."""
        run, b = self.run, self.run.binding
        named = (b.input_id, b.installation, b.chunk, b.attempt) if b else (None, None, None, None)
        head = (run.run_id, run.batch_id, run.metadata, run.status, self.reason, self.first_seen, *named)
        return (*head, *_run_values(run)[1:], run.order, self.fingerprints, msgspec.json.encode(self.bindings))


async def write_unmatched(
    connection: asyncpg.Connection, before: Collection[str], unmatched: Sequence[UnmatchedRun]
) -> None:
    """Delete the rows of the run ids in ``before``, and insert the runs that are ``unmatched`` now."""
    if before:
        await connection.execute(_sql["delete_unmatched"], list(before))
    if unmatched:
        await copy(connection, "unmatched_runs", UNMATCHED_COLUMNS, [run.values() for run in unmatched])


async def write_submissions(connection: asyncpg.Connection, logged_events: Sequence[LoggedEvent]) -> None:
    """Insert the submissions of submission-accepted and batch-registered events."""
    if logged_events:
        await connection.execute(
            _sql["insert_submissions"], *columns_of([_submission(logged.event) for logged in logged_events])
        )


def _submission(event: Any) -> tuple[Any, ...]:
    head = (event.submission_id, event.workflow_id, event.workflow_version)
    if isinstance(event, events.BatchRegistered):
        return (*head, None, len(event.inputs), instant(event.registered_at))
    return (*head, event.priority, event.expected, instant(event.created_at))


async def write_deliveries(connection: asyncpg.Connection, logged_events: Sequence[LoggedEvent]) -> None:
    """Insert the deliveries of delivery-deferred events."""
    rows = []
    for logged in logged_events:
        event: Any = logged.event
        key = reserved.read(event.metadata)
        named = (key.chunk, key.attempt, key.input) if key else (None, None, None)
        rows.append((event.run_id, event.event_type, *named, logged.time))
    if rows:
        await connection.execute(_sql["insert_deliveries"], *columns_of(rows))


async def write_decisions(connection: asyncpg.Connection, logged_events: Sequence[LoggedEvent]) -> None:
    """Insert the decisions in these events, one per event."""
    for logged in logged_events:
        await connection.execute(_sql["insert_decision"], *decisions.decision_of(logged))


async def write_quarantine(connection: asyncpg.Connection, logged_events: Sequence[LoggedEvent]) -> None:
    """Insert quarantined messages, and update messages that a person retried or discarded."""
    for logged in logged_events:
        statement, values = _quarantine_change(logged)
        await connection.execute(_sql[statement], *values)


def _quarantine_change(logged: LoggedEvent) -> tuple[str, tuple[Any, ...]]:
    event: Any = logged.event
    if isinstance(event, events.QuarantineDiscarded):
        return "decide_quarantine", (event.source, "DISCARDED", None, logged.time)
    if isinstance(event, events.QuarantineRetried):
        still = storable_text(event.detail) if event.outcome == "not-understood" else None
        return "decide_quarantine", (event.source, "OPEN" if still else "RETRIED", still, logged.time)
    position = (event.source, event.topic, event.partition, event.offset)
    headers = storable_json(msgspec.json.encode(event.headers))
    key = None if event.key is None else base64.b64decode(event.key)
    message = (storable_text(event.reason), base64.b64decode(event.raw), headers, key)
    return "insert_quarantine", (*position, *message, logged.time)


async def write_attempts(
    connection: asyncpg.Connection, logged_events: Sequence[LoggedEvent], deltas: CounterDeltas
) -> None:
    """Write the attempts of these events. Then update the counters and the state of each attempt that is affected."""
    upserts = sorted(
        (attempts.upsert_of(logged) for logged in logged_events), key=lambda upsert: (upsert.chunk, upsert.attempt)
    )
    for upsert in upserts:
        deltas.touch((upsert.chunk, upsert.attempt))
    if upserts:
        await connection.executemany(_sql["upsert_attempt"], upserts)
    keys = deltas.attempts()
    if not keys:
        return
    changed = []
    for record in await connection.fetch(_sql["lock_attempts"], *columns_of(keys)):
        key = (record["chunk"], record["attempt"])
        counts = attempts.add_deltas(msgspec.json.decode(record["counts"]), deltas.counts[key])
        runs = record["runs_observed"] + deltas.runs.get(key, 0)
        changed.append((key, record, counts, runs, attempts.state_of(dict(record), counts, runs)))
    last = await _last_settled(connection, [key for key, *_, state in changed if state in attempts.ENDED])
    values = []
    for key, record, counts, runs, state in changed:
        duplicates = record["duplicates"] + deltas.duplicates.get(key, 0)
        superseded = record["superseded"] + deltas.superseded.get(key, 0)
        values.append((*key, msgspec.json.encode(counts), runs, duplicates, superseded, state, last.get(key)))
    if values:
        await connection.execute(_sql["update_attempts"], *columns_of(values))


async def _last_settled(connection: asyncpg.Connection, ended: Sequence[AttemptKey]) -> dict[AttemptKey, Any]:
    if not ended:
        return {}
    records = await connection.fetch(_sql["last_settled"], *columns_of(ended))
    return {(record["chunk"], record["attempt"]): record["settled_at"] for record in records}


def columns_of(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of these rows, for a statement that takes one array per column."""
    return [list(column) for column in zip(*rows, strict=True)]


def _run_values(run: Run) -> tuple[Any, ...]:
    """Return the values of a run for the columns from ``status`` to ``settled_at``, which several tables have."""
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
