"""Turn what Extend sends (signed webhooks and polled runs) into records of the log. Pure: no I/O, no clock.

A run becomes the same ``run-observed`` event whether it comes from a webhook or a poll. A webhook that cannot be
understood becomes a record of the quarantine, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from everyrun.log.cloudevents import Record, record
from everyrun.log.events import DeliveryDeferred, RunObserved
from everyrun.log.keys import run_key
from everyrun.log.quarantine import quarantined

#: The CloudEvents source of events made from webhooks. If a webhook is retried from the quarantine, its event gets the
#: same source, so that it is the same event.
SERVICE = "/everyrun/bridge"

#: The only event of a workflow subscription whose payload is a step, not a run (SDK 1.20.0, types/webhook_event.py).
STEP_EVENT = "workflow_run.step_run.processed"

#: Limits for the headers that are kept of a quarantined webhook: how many, and the number of characters of each value.
_HEADERS_KEPT, _HEADER_CHARACTERS = 40, 500

#: What the doctor posts to find out whether a bridge listens and knows the secret. Extend never sends this event.
SELF_TEST_EVENT = "everyrun.self_test"
SELF_TEST = b'{"eventId":"everyrun-self-test","eventType":"everyrun.self_test","payload":{}}'
SELF_TEST_ANSWER = {"status": "self-test"}

#: Maximum number of bytes of a run. A larger run is stored without its steps and files, so that the event fits a record
#: of 16 MiB.
MAX_RUN_BYTES = 15 << 20

Outcome = Literal["observed", "deferred", "step", "self_test", "quarantined"]


class Interpretation(NamedTuple):
    """Says how to treat a webhook: the outcome to count, and the record to write (None if the webhook is dropped)."""

    outcome: Outcome
    record: Record | None


class InvalidWebhookError(Exception):
    """The body is not one of Extend's events about runs. The text of the error says why."""


class InvalidRunError(Exception):
    """The JSON is not a WorkflowRun. The text of the error says why."""


class RunHead(msgspec.Struct, frozen=True):
    """The fields of a run that are read before it is written to the log."""

    object: str
    id: str
    status: str
    batchId: str | None = None  # noqa: N815
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


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
_head = msgspec.json.Decoder(RunHead)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


def interpret(body: bytes, headers: Iterable[tuple[bytes, bytes]], time: str) -> Interpretation:
    """Return what to do with a signed webhook. Its body may be any bytes: no error is raised.

    ``time`` is when the bridge received the webhook, as RFC 3339. Event ids depend on the body alone, so a repeated
    delivery has the same id.
    """
    try:
        return understand(body, time)
    except InvalidWebhookError as error:
        reason = str(error)
    kept = [
        (name.decode("latin-1"), value.decode("latin-1")[:_HEADER_CHARACTERS])
        for name, value in list(headers)[:_HEADERS_KEPT]
    ]
    source = f"webhook/{hashlib.sha256(body).hexdigest()}"
    return Interpretation(
        "quarantined",
        quarantined(source=source, topic="webhook", reason=reason, raw=body, headers=kept, time=time, service=SERVICE),
    )


def understand(body: bytes, time: str) -> Interpretation:
    """Return the same as ``interpret``, but raise InvalidWebhookError for a body that belongs in the quarantine."""
    try:
        return _understood(body, time)
    except InvalidRunError as error:
        raise InvalidWebhookError(str(error)) from None
    except UnicodeError:
        raise InvalidWebhookError("not UTF-8 text") from None
    except msgspec.DecodeError as error:
        raise InvalidWebhookError(f"not a webhook event: {error}") from None
    except RecursionError:
        raise InvalidWebhookError("not a webhook event: nested too deeply") from None


def _understood(body: bytes, time: str) -> Interpretation:
    body.decode()  # msgspec does not validate the UTF-8 of what it passes through as Raw.
    event = _envelope.decode(body)
    if event.eventType == SELF_TEST_EVENT:
        return Interpretation("self_test", None)
    if event.eventType is not None and not event.eventType.startswith("workflow_run."):
        raise InvalidWebhookError(f"event type not for workflows: {event.eventType[:80]}")
    kind = _kind.decode(event.payload).object
    if kind == "workflow_step_run" or (event.eventType == STEP_EVENT and kind != "workflow_run"):
        return Interpretation("step", None)
    event_id = event.eventId or f"webhook-{hashlib.sha256(body).hexdigest()}"
    if kind == "signed_data_url":
        return Interpretation("deferred", _deferred(event, event_id, time))
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
    return Interpretation("observed", run)


def _deferred(event: _Envelope, event_id: str, time: str) -> Record:
    link = _link.decode(event.payload)
    if not link.id:
        raise InvalidWebhookError("a signed link without a run id")
    deferred = DeliveryDeferred(
        # If the event has no type, assume the same type as the SDK does.
        event_type=event.eventType or "workflow_run.completed",
        run_id=link.id,
        url=link.data,
        metadata=link.metadata if isinstance(link.metadata, dict) else None,
    )
    return record("deliveries", deferred, key=link.id, id=event_id, source=SERVICE, time=time)


def read_head(run: bytes | msgspec.Raw) -> RunHead:
    """Return the head of a WorkflowRun (SDK 1.20.0, types/workflow_run.py). Raises InvalidRunError."""
    try:
        head = _head.decode(run)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRunError(f"not a workflow run: {error}") from None
    if head.object != "workflow_run":
        raise InvalidRunError(f"not a workflow run but a {head.object[:40]}")
    if not head.id:
        raise InvalidRunError("the run's id is empty")
    return head


def fit(run: bytes) -> tuple[bytes, bool]:
    """Return the run, and whether it was truncated. A run over MAX_RUN_BYTES gets empty ``stepRuns`` and ``files``.

    Raises InvalidRunError if the run is too large even without them.
    """
    if len(run) <= MAX_RUN_BYTES:
        return run, False
    fields = _fields.decode(run)
    fields.update(stepRuns=msgspec.Raw(b"[]"), files=msgspec.Raw(b"[]"))
    head = _encode(fields)
    if len(head) > MAX_RUN_BYTES:
        raise InvalidRunError(f"the run has {len(run)} bytes, and {len(head)} without steps and files")
    return head, True


def observed(
    run: bytes,
    head: RunHead,
    *,
    source: Literal["webhook", "poll"],
    id: str,
    time: str,
    service: str,
    event_type: str | None = None,
) -> Record:
    """Return the ``run-observed`` record. It holds the run as :func:`fit` returns it. Its key is :func:`run_key`.

    ``time`` is when the bridge received the webhook, or when the poll sent its request. Raises InvalidRunError.
    """
    kept, truncated = fit(run)
    event = RunObserved(source=source, run=msgspec.Raw(kept), event_type=event_type, truncated=truncated)
    key = run_key(head.metadata, head.batchId, head.id)
    return record("runs", event, key=key, id=id, source=service, time=time, subject=head.id)
