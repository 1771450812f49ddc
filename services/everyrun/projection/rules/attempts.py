"""Derive rows from the topic ``batches``.

Each attempt has a row in the table ``batches``. An input has a row in the table ``results`` once its batch was accepted
or refused. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent
from everyrun.log.keys import lineage
from everyrun.projection.rules.match import Batch, by_fingerprint, fingerprint
from everyrun.projection.rules.merge import SETTLED
from everyrun.projection.rules.run_selection import WAITING, Row, version_of_attempt, version_of_retry
from everyrun.store.storable import storable_json, storable_text

_encode = msgspec.json.Encoder().encode

SENDING, RETURNED, IN_DOUBT, RESENT = "SENDING", "RETURNED", "IN_DOUBT", "RESENT"
REFUSED, SUBMITTED, CUT, CANCELLED = "REFUSED", "SUBMITTED", "CUT", "CANCELLED"
#: The states of an attempt after which its inputs have their final status, unless a run of it appears later.
ENDED = ("SETTLED", REFUSED, CANCELLED)
#: The failure_reason of inputs that a person discarded.
DISCARDED = "DISCARDED"
#: The failure_reason of inputs that were cancelled before Extend accepted them.
CANCELLED_UNSENT = "CANCELLED_UNSENT"

#: Each column holds the time at which an attempt reached the state. If several columns are set, the first one in this
#: list decides the state.
_STATES = (
    ("submitted_at", SUBMITTED),
    ("rejected_at", REFUSED),
    ("cut_at", CUT),
    ("cancelled_at", CANCELLED),
    ("returned_at", RETURNED),
    ("resent_at", RESENT),
    ("in_doubt_at", IN_DOUBT),
    ("requested_at", SENDING),
)

#: The column that stores the time of an event, by the type of the event.
_COLUMN: dict[type[msgspec.Struct], str] = {
    events.BatchRequested: "requested_at",
    events.BatchReturned: "returned_at",
    events.BatchInDoubt: "in_doubt_at",
    events.DoubtAdopted: "submitted_at",
    events.DoubtResent: "resent_at",
    events.DoubtDiscarded: "rejected_at",
    events.BatchSubmitted: "submitted_at",
    events.BatchRejected: "rejected_at",
    events.BatchCut: "cut_at",
    events.BatchCancelled: "cancelled_at",
    events.BatchRegistered: "submitted_at",
}


_REFUSALS = (events.BatchRejected, events.DoubtDiscarded)
#: Events after which the inputs have a final status without a run.
_WITHOUT_RUN = (*_REFUSALS, events.BatchCancelled)
#: Events whose inputs become rows of ``results``. The inputs of batch-requested do not: they are not sent yet.
_WITH_ROWS = (
    *_WITHOUT_RUN,
    events.BatchSubmitted,
    events.DoubtAdopted,
    events.BatchRegistered,
    events.InputsRetried,
)


class Upsert(NamedTuple):
    """The parameters of the statement ``upsert_attempt`` for one event, in order."""

    chunk: str
    attempt: int
    batch_id: str | None
    submission_id: str
    workflow_id: str | None
    workflow_version: str | None
    priority: int | None
    expected: int
    reason: str | None
    requested_at: datetime | None
    returned_at: datetime | None
    in_doubt_at: datetime | None
    resent_at: datetime | None
    rejected_at: datetime | None
    submitted_at: datetime | None
    input_ids: list[str]
    fingerprints: list[str | None] | None
    cut_at: datetime | None
    cancelled_at: datetime | None


def upsert_of(logged: LoggedEvent) -> Upsert:
    """Return what an event says about its attempt, as parameters of ``upsert_attempt``."""
    event: Any = logged.event
    times = {column: None for column, _ in _STATES} | {_COLUMN[type(event)]: logged.time}
    input_ids = getattr(event, "input_ids", None) or [given.input_id for given in getattr(event, "inputs", ())]
    reason = getattr(event, "reason", None)
    if type(event) in (*_WITHOUT_RUN, events.BatchCut):
        reason = ": ".join(_refusal(event))
    return Upsert(
        chunk=event.chunk,
        attempt=event.attempt,
        batch_id=getattr(event, "batch_id", None),
        submission_id=event.submission_id,
        workflow_id=getattr(event, "workflow_id", None),
        workflow_version=getattr(event, "workflow_version", None),
        priority=getattr(event, "priority", None),
        expected=len(input_ids),
        reason=storable_text(reason) if reason else None,
        input_ids=input_ids,
        fingerprints=_fingerprints(event),
        **times,
    )


def _fingerprints(event: Any) -> list[str | None] | None:
    """Return the fingerprints of a registered batch's inputs, in order; None for other events."""
    if not isinstance(event, events.BatchRegistered):
        return None
    return [fingerprint(_encode(given.metadata)) for given in event.inputs]


def _refusal(event: Any) -> tuple[str, str]:
    """Return why the inputs of an attempt have no run: Extend's code and message, or a person's reason and name."""
    if isinstance(event, events.DoubtDiscarded):
        return DISCARDED, f"{event.reason} ({event.by})"
    if isinstance(event, events.BatchCancelled):
        return CANCELLED_UNSENT, f"{event.reason} ({event.by})"
    return event.code, event.message


def inputs_with_rows(event: Any) -> list[events.Input]:
    """Return the inputs of an event that become rows of ``results``."""
    return list(event.inputs) if isinstance(event, _WITH_ROWS) else []


def rows_of(logged: LoggedEvent) -> list[tuple[Row, str | None, str | None]]:
    """Return the rows of ``results`` for the inputs of an event, each as (row, failure reason, failure message)."""
    event: Any = logged.event
    without_run = type(event) in _WITHOUT_RUN
    retried = isinstance(event, events.InputsRetried)
    attempt = 0 if retried else event.attempt
    version = version_of_retry(event.chunk) if retried else version_of_attempt(event.chunk, attempt, without_run)
    status = WAITING if retried else REFUSED if without_run else SUBMITTED
    # Extend may refuse an attempt about which a person also decides. The row must then show the person's decision,
    # whichever event comes first. The suffix ensures this: a text that continues another text sorts after it.
    if isinstance(event, events.DoubtDiscarded):
        version += DISCARDED
    elif isinstance(event, events.BatchCancelled):
        version += CANCELLED_UNSENT
        status = CANCELLED
    reason, message = _refusal(event) if without_run else (None, None)
    return [
        (
            Row(
                input_id=given.input_id,
                external_id=given.external_id,
                submission_id=event.submission_id,
                position=given.position,
                chunk=event.chunk,
                attempt=attempt,
                batch_id=None if without_run or retried else event.batch_id,
                run_id=None,
                status=status,
                version=version,
                observed_at=logged.time,
                file=storable_json(_encode(given.file)),
                metadata=storable_json(_encode(given.metadata)),
            ),
            reason,
            message,
        )
        for given in inputs_with_rows(event)
    ]


def state_of(attempt: Mapping[str, Any], counts: Mapping[str, int], runs_observed: int) -> str:
    """Return the state of an attempt, from its events so far, the statuses of its inputs and its number of runs.

    An attempt is SETTLED if it was submitted, every input that belongs to it is settled, and at least as many runs were
    seen as the batch has inputs. An input belongs to the attempt that started its current run. If Extend accepted two
    attempts for a chunk, all inputs may belong to one of them. The other attempt then settles once all its runs have
    been seen. They are duplicates.
    """
    state = next((state for column, state in _STATES if attempt[column] is not None), SENDING)
    if state == SUBMITTED and runs_observed >= attempt["expected"] and all(status in SETTLED for status in counts):
        return "SETTLED"
    return state


def add_deltas(counts: Mapping[str, int], deltas: Mapping[str, int]) -> dict[str, int]:
    """Add ``deltas`` to the counters ``counts``, and return the result sorted by status and without zeros."""
    statuses = sorted({*counts, *deltas})
    after = {status: counts.get(status, 0) + deltas.get(status, 0) for status in statuses}
    return {status: number for status, number in after.items() if number}


def batches_of(logged_events: Iterable[LoggedEvent]) -> dict[str, Batch]:
    """Return the batches that the events announce, by batchId."""
    found = {}
    for logged in logged_events:
        event = logged.event
        if not isinstance(event, events.BatchSubmitted | events.DoubtAdopted | events.BatchRegistered):
            continue
        ids = [given.input_id for given in event.inputs]
        inputs = None
        if isinstance(event, events.BatchRegistered):
            inputs = by_fingerprint(zip(_fingerprints(event) or (), ids, strict=True))
        found[event.batch_id] = Batch(event.batch_id, event.chunk, event.attempt, inputs, frozenset(ids))
    return found


def key_of(event: Any) -> str:
    """Return the Kafka key of an attempt's event.

    It is the id of the chunk, or the batchId of a registered batch. For a part, it is the id of the original chunk,
    which was cut.
    """
    return event.batch_id if isinstance(event, events.BatchRegistered) else lineage(event.chunk)
