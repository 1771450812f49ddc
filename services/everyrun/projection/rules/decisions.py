"""Derive rows of the table ``decisions`` from events: what was decided, by whom and why. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent, event_type
from everyrun.projection.rules.merge import instant
from everyrun.store.storable import storable_text

#: Decisions about an attempt. These events also change the row of the attempt in ``batches``.
OF_AN_ATTEMPT = (events.DoubtAdopted, events.DoubtResent, events.DoubtDiscarded)
OF_THE_QUARANTINE = (events.QuarantineRetried, events.QuarantineDiscarded)
OF_NO_ATTEMPT = (
    events.WorkflowPaused,
    events.WorkflowResumed,
    events.SubmissionPaused,
    events.SubmissionResumed,
    events.CancellationRequested,
    events.TokenCreated,
    events.TokenRevoked,
    events.ReceiverChanged,
)
#: The fields from which the column ``source`` is taken.
_SOURCES = ("source", "token_id", "cancellation_id", "receiver_id")


class Decision(NamedTuple):
    """The parameters of the statement ``insert_decision``, in order."""

    event_id: str
    kind: str
    workflow_id: str | None
    submission_id: str | None
    chunk: str | None
    attempt: int | None
    batch_id: str | None
    #: What was decided about: the source of a quarantined message, or the id of a token, a cancellation or a receiver.
    source: str | None
    decided_by: str | None
    reason: str
    decided_at: datetime


def decision_of(logged: LoggedEvent) -> Decision:
    """Return the decision in an event."""
    event: Any = logged.event
    by = event.by
    if isinstance(event, events.InputsRetried):
        # A retry has an event for each of its chunks, and is one decision.
        return Decision(
            event_id=f"{event.submission_id}/retry/{event.retry}",
            kind="inputs-retried",
            workflow_id=event.workflow_id,
            submission_id=event.submission_id,
            chunk=None,
            attempt=None,
            batch_id=None,
            source=None,
            decided_by=by and storable_text(by),
            reason=storable_text(f"{event.reason} ({event.total} inputs)"),
            decided_at=instant(event.requested_at) or logged.time,
        )
    return Decision(
        event_id=logged.id,
        kind=event_type(event),
        workflow_id=getattr(event, "workflow_id", None),
        submission_id=getattr(event, "submission_id", None),
        chunk=getattr(event, "chunk", None),
        attempt=getattr(event, "attempt", None),
        batch_id=getattr(event, "batch_id", None),
        source=next((getattr(event, name) for name in _SOURCES if hasattr(event, name)), None),
        decided_by=by and storable_text(by),
        reason=storable_text(_reason(event)),
        decided_at=logged.time,
    )


def _reason(event: Any) -> str:
    if isinstance(event, events.TokenCreated):
        return f"a token for {event.name}: {', '.join(event.scopes)}, until {event.expires_at or 'it is revoked'}"
    if isinstance(event, events.TokenRevoked):
        return f"the token for {event.name}" + (f": {event.reason}" if event.reason else "")
    if isinstance(event, events.ReceiverChanged):
        gets = f", which gets {', '.join(event.events)}" if event.change == "added" else ""
        return f"{event.change}: the receiver {event.url}{gets}"
    return str(event.reason)
