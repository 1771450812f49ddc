"""Turn records of the log into notifications: events with the body that is sent to receivers. Pure.

A run's event is sent once for each change of the run, not once for each observation. If a webhook and a poll show the
same state, both give the same notification, and the first one in the log decides its body.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from everyrun.extend.reserved import KEY
from everyrun.log import events
from everyrun.log.cloudevents import header
from everyrun.log.reading import LogRecord
from everyrun.log.upcast import TooNewError, upcast
from everyrun.notifier.catalog import OF_EVERYRUN, OF_STATUS, TEST_EVENT, Format
from everyrun.projection.rules.merge import own_time
from everyrun.store.storable import storable_text

#: The topics that contain events for receivers.
TOPICS = ("runs", "batches", "reports", "quarantine")
#: The prefix of the id of a run's event that was fetched from a signed link; what follows is Extend's eventId.
_FETCHED = "delivery-"
#: The fields of a quarantined message that are sent. Its bytes and headers are not: they can be large and confidential.
_OF_THE_QUARANTINE = ("source", "topic", "partition", "offset", "reason")
_KEY = f'"{KEY}"'.encode()


class Notification(msgspec.Struct, frozen=True):
    """An event with the body that is sent.

    ``id`` depends only on the change that the event describes, so that reading a record twice makes no second
    notification. ``subject`` is what the event is about: a run, a submission, a chunk, a workflow or a message.
    """

    id: str
    event: str
    format: Format
    subject: str
    workflow_id: str | None
    body: bytes


class _Head(msgspec.Struct):
    """Only the fields without which the bridge refuses a run have types, so that no accepted run is left out."""

    id: str
    status: str
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    workflow: Any = None
    startTime: Any = None  # noqa: N815
    endTime: Any = None  # noqa: N815
    reviewedAt: Any = None  # noqa: N815


_observed = msgspec.json.Decoder(events.RunObserved)
_head = msgspec.json.Decoder(_Head)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_OF_EVERYRUN: dict[str, msgspec.json.Decoder[msgspec.Struct]] = {
    "submission-settled": msgspec.json.Decoder(events.SubmissionSettled),
    "batch-in-doubt": msgspec.json.Decoder(events.BatchInDoubt),
    "workflow-paused": msgspec.json.Decoder(events.WorkflowPaused),
    "quarantined": msgspec.json.Decoder(events.MessageQuarantined),
}
#: Errors that mean that a record is not a valid event. The processor quarantines such a record.
_INVALID = (msgspec.DecodeError, UnicodeError, RecursionError, TooNewError)


def notification_of(topic: str, record: LogRecord) -> Notification | None:
    """Return the notification for a record, or None if no receiver can get it.

    ``topic`` is the short name. No error is raised for an invalid record: None is returned, and the processor
    quarantines the record, which is an event of its own.
    """
    kind = header(record.headers, "ce_type")
    try:
        if topic == "runs":
            return _of_run(record) if kind == "run-observed" else None
        name = next((name for name, logged in OF_EVERYRUN.items() if logged == kind), None)
        return _of_event(name, record) if name is not None else None
    except _INVALID:
        return None


def _of_run(record: LogRecord) -> Notification | None:
    observed = _observed.decode(upcast(record.headers, record.value or b""))
    bytes(observed.run).decode()  # msgspec does not validate the UTF-8 of what it passes through as Raw.
    head = _head.decode(observed.run)
    event = observed.event_type or OF_STATUS.get(head.status)
    if event is None:
        return None
    # The time tells two changes to the same status apart: a run that failed, was started again, and failed again. While
    # a run waits for review, it has no end, so the time of its start is used.
    own = own_time(_text(head.endTime), _text(head.reviewedAt))
    identifier = _id(event, head.id, own.isoformat() if own is not None else _text(head.startTime) or "")
    logged_id = header(record.headers, "ce_id")
    # A poll has no eventId of Extend's. Its event gets one that is always the same for the same change.
    event_id = logged_id.removeprefix(_FETCHED) if observed.source == "webhook" else f"event_{identifier[4:]}"
    body = b'{"eventId":%s,"eventType":%s,"payload":%s}' % (
        _encode(event_id),
        _encode(event),
        without_reserved_key(bytes(observed.run), head.metadata),
    )
    workflow = _text(head.workflow.get("id")) if isinstance(head.workflow, dict) else None
    return Notification(identifier, storable_text(event), "extend", storable_text(head.id), workflow, body)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def without_reserved_key(run: bytes, metadata: msgspec.Raw) -> bytes:
    """Return a run without Everyrun's reserved metadata key. All else stays as Extend sent it.

    If the key is absent, every byte stays. Otherwise, only whitespace around the run's fields changes.
    """
    if _KEY not in bytes(metadata):
        return run
    kept = _fields.decode(metadata)
    kept.pop(KEY, None)
    fields = _fields.decode(run)
    fields["metadata"] = msgspec.Raw(_encode(kept))
    return _encode(fields)


def _of_event(name: str, record: LogRecord) -> Notification:
    value = upcast(record.headers, record.value or b"")
    event = _OF_EVERYRUN[name].decode(value)
    data = _fields.decode(value)
    data.pop("type", None)
    if name == "quarantined":
        data = {field: data[field] for field in _OF_THE_QUARANTINE if field in data}
    # As the specification Standard Webhooks recommends: the type, the time of the event, and its data.
    body = _encode({"type": name, "timestamp": header(record.headers, "ce_time"), "data": data})
    subject = header(record.headers, "ce_subject") or (record.key or b"").decode("utf-8", "replace")
    workflow = getattr(event, "workflow_id", None)
    identifier = _id(name, header(record.headers, "ce_id"), "")
    return Notification(identifier, name, "everyrun", storable_text(subject), workflow, body)


def trial_notification(format: Format, identifier: str, time: str) -> Notification:
    """Return a notification that only tests a receiver. No consumer of Extend's events knows its type."""
    if format == "extend":
        content: dict[str, Any] = {"eventId": identifier, "eventType": TEST_EVENT, "payload": {}}
    else:
        content = {"type": TEST_EVENT, "timestamp": time, "data": {}}
    return Notification(identifier, TEST_EVENT, format, "test", None, _encode(content))


def _id(event: str, subject: str, time: str) -> str:
    text = _encode([event, subject, time])
    return f"ntf_{hashlib.blake2b(text, digest_size=16).hexdigest()}"
