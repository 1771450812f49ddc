"""What a signed webhook body means, to the bridge and to whoever works on the quarantine. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from everyrun.log.cloudevents import Record, record
from everyrun.log.events import DeliveryDeferred
from everyrun.log.observation import NotARunError, observed, read_head
from everyrun.log.quarantine import quarantined

#: The CloudEvents source: also of what is understood later, so that it is the same record.
SERVICE = "/everyrun/bridge"

#: The one event of a workflow's subscription whose payload is a step, not a run (SDK 1.20.0, types/webhook_event.py).
STEP_EVENT = "workflow_run.step_run.processed"

#: Of the headers of a quarantined webhook so many are kept, each to so many characters.
_HEADERS_KEPT, _HEADER_CHARACTERS = 40, 500

#: What the doctor posts to see whether a bridge listens and knows the secret; Extend sends nothing of the kind.
SELF_TEST_EVENT = "everyrun.self_test"
SELF_TEST = b'{"eventId":"everyrun-self-test","eventType":"everyrun.self_test","payload":{}}'
SELF_TEST_ANSWER = {"status": "self-test"}

Outcome = Literal["observed", "deferred", "step", "self_test", "quarantined"]


class Meaning(NamedTuple):
    """How a webhook is counted, and the record to write; None where it is dropped."""

    outcome: Outcome
    record: Record | None


class NotUnderstoodError(Exception):
    """The body is none of Extend's events about runs; the text says why."""


class _Envelope(msgspec.Struct):
    payload: msgspec.Raw
    eventId: str | None = None  # noqa: N815
    eventType: str | None = None  # noqa: N815


class _Kind(msgspec.Struct):
    object: Any = None


class _Link(msgspec.Struct):
    data: str
    id: str
    metadata: Any = None


_envelope = msgspec.json.Decoder(_Envelope)
_kind = msgspec.json.Decoder(_Kind)
_link = msgspec.json.Decoder(_Link)


def interpret(body: bytes, headers: Iterable[tuple[bytes, bytes]], time: str) -> Meaning:
    """Return the meaning of a signed body, whatever bytes it has. Never raises.

    ``time`` is when the bridge received it, RFC 3339. Ids come from the body alone: a repeated delivery has the same.
    """
    try:
        return understand(body, time)
    except NotUnderstoodError as error:
        reason = str(error)
    kept = [
        (name.decode("latin-1"), value.decode("latin-1")[:_HEADER_CHARACTERS])
        for name, value in list(headers)[:_HEADERS_KEPT]
    ]
    source = f"webhook/{hashlib.sha256(body).hexdigest()}"
    return Meaning(
        "quarantined",
        quarantined(source=source, topic="webhook", reason=reason, raw=body, headers=kept, time=time, service=SERVICE),
    )


def understand(body: bytes, time: str) -> Meaning:
    """As ``interpret``, and the same records; raises NotUnderstoodError for a body that belongs in the quarantine."""
    try:
        return _understood(body, time)
    except NotARunError as error:
        raise NotUnderstoodError(str(error)) from None
    except UnicodeError:
        raise NotUnderstoodError("not UTF-8 text") from None
    except msgspec.DecodeError as error:
        raise NotUnderstoodError(f"not a webhook event: {error}") from None
    except RecursionError:
        raise NotUnderstoodError("not a webhook event: nested too deeply") from None


def _understood(body: bytes, time: str) -> Meaning:
    body.decode()  # msgspec does not look at the text it only passes on
    event = _envelope.decode(body)
    if event.eventType == SELF_TEST_EVENT:
        return Meaning("self_test", None)
    if event.eventType is not None and not event.eventType.startswith("workflow_run."):
        raise NotUnderstoodError(f"event type not for workflows: {event.eventType[:80]}")
    kind = _kind.decode(event.payload).object
    if kind == "workflow_step_run" or (event.eventType == STEP_EVENT and kind != "workflow_run"):
        return Meaning("step", None)
    event_id = event.eventId or f"webhook-{hashlib.sha256(body).hexdigest()}"
    if kind == "signed_data_url":
        return Meaning("deferred", _deferred(event, event_id, time))
    head = read_head(event.payload)
    run = observed(
        bytes(event.payload),
        head,
        source="webhook",
        id=event_id,
        time=time,
        service=SERVICE,
        event_type=event.eventType,
    )
    return Meaning("observed", run)


def _deferred(event: _Envelope, event_id: str, time: str) -> Record:
    link = _link.decode(event.payload)
    if not link.id:
        raise NotUnderstoodError("a signed link without a run id")
    deferred = DeliveryDeferred(
        # The SDK, too, takes an event without a type for this one.
        event_type=event.eventType or "workflow_run.completed",
        run_id=link.id,
        url=link.data,
        metadata=link.metadata if isinstance(link.metadata, dict) else None,
    )
    return record("deliveries", deferred, key=link.id, id=event_id, source=SERVICE, time=time)
