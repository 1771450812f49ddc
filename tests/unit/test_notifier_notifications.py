"""Each change of a run gives one notification, in Extend's format; Everyrun's own events give one each."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from everyrun.extend.reserved import KEY
from everyrun.log import events
from everyrun.log.cloudevents import Record, record
from everyrun.log.events import RunObserved
from everyrun.log.observation import interpret, observed, read_head
from everyrun.log.quarantine import quarantined
from everyrun.log.reading import LogRecord
from everyrun.notifier.notifications import Notification, notification_of, without_reserved_key

TIME = "2026-03-01T10:00:00.000Z"
RESERVED = {"installation": "i", "input": "s:1", "chunk": "s.c1", "attempt": 1, "position": 1}


class Read(msgspec.Struct):
    """A record as a consumer reads it."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    partition: int = 0
    offset: int = 0
    timestamp: int = 0


def read(written: Record | None) -> LogRecord:
    assert written is not None
    return Read(written.topic, written.key, written.value, written.headers)


def run(status: str = "PROCESSED", **more: Any) -> dict[str, Any]:
    head = {"object": "workflow_run", "id": "workflow_run_1", "status": status, "batchId": "batch_1"}
    times = {"startTime": "2026-03-01T09:00:00.000Z", "endTime": "2026-03-01T09:30:00.000Z", "reviewedAt": None}
    return {**head, "metadata": {"row": 1}, "workflow": {"object": "workflow", "id": "workflow_a"}, **times, **more}


def webhook(of: dict[str, Any], event: str | None = "workflow_run.completed", event_id: str = "event_a") -> LogRecord:
    body = {"eventId": event_id, "eventType": event, "payload": of}
    return read(interpret(json.dumps(body, ensure_ascii=False).encode(), [], TIME).record)


def polled(of: dict[str, Any], at: str = TIME) -> LogRecord:
    content = json.dumps(of).encode()
    digest = hashlib.sha256(content).hexdigest()
    return read(observed(content, read_head(content), source="poll", id=digest, time=at, service="/test"))


def made(topic: str, found: LogRecord) -> Notification:
    notification = notification_of(topic, found)
    assert notification is not None
    return notification


def test_a_webhook_goes_on_with_extends_own_ids_and_payload() -> None:
    given = run(extra={"deep": [1.10, "ü", None]})
    found = made("runs", webhook(given))
    assert (found.event, found.format, found.subject) == ("workflow_run.completed", "extend", "workflow_run_1")
    assert found.workflow_id == "workflow_a"
    body = json.loads(found.body)
    assert body == {"eventId": "event_a", "eventType": "workflow_run.completed", "payload": given}
    # Without the reserved key, every byte of the payload is Extend's.
    assert json.dumps(given, ensure_ascii=False).encode() in found.body


def test_only_the_reserved_key_is_missing_from_the_payload() -> None:
    marked = run(metadata={"row": 1, KEY: RESERVED, "customer": "ü"})
    body = json.loads(made("runs", webhook(marked)).body)
    assert body["payload"] == run(metadata={"row": 1, "customer": "ü"})


def test_other_bytes_stay_when_the_reserved_key_is_removed() -> None:
    text = (
        b'{"id":"r", "big":12345678901234567890.10, "metadata":{"everyrun:input": 1, "a":  "\\u00fc"},"z":{ "y" : 1 }}'
    )
    found = without_reserved_key(text, msgspec.Raw(b'{"everyrun:input": 1, "a":  "\\u00fc"}'))
    assert found == b'{"id":"r","big":12345678901234567890.10,"metadata":{"a":"\\u00fc"},"z":{ "y" : 1 }}'


def test_a_webhook_and_a_poll_of_the_same_state_are_one_event() -> None:
    first, second = made("runs", webhook(run())), made("runs", polled(run()))
    assert first.id == second.id
    assert made("runs", webhook(run(), event_id="event_b")).id == first.id
    assert json.loads(second.body)["eventType"] == "workflow_run.completed"
    # Whenever the poll was, it gives the same body.
    assert made("runs", polled(run(), "2026-03-02T10:00:00.000Z")).body == second.body


@pytest.mark.parametrize(
    "other",
    [
        run(endTime="2026-03-01T11:30:00.000Z"),
        run(reviewedAt="2026-03-01T11:30:00.000Z"),
        run("FAILED"),
        run(id="workflow_run_2"),
        run("NEEDS_REVIEW", endTime=None),
    ],
)
def test_another_change_is_another_event(other: dict[str, Any]) -> None:
    assert made("runs", polled(other)).id != made("runs", polled(run())).id


def test_a_second_review_of_a_run_is_another_event() -> None:
    first = run("NEEDS_REVIEW", endTime=None)
    second = run("NEEDS_REVIEW", endTime=None, startTime="2026-03-01T12:00:00.000Z")
    assert made("runs", polled(first)).id != made("runs", polled(second)).id
    assert made("runs", polled(first)).id == made("runs", webhook(first, "workflow_run.needs_review")).id


@pytest.mark.parametrize("status", ["PENDING", "PROCESSING", "CANCELLING", "A_NEW_ONE"])
def test_extend_has_no_event_for_a_run_that_is_not_done(status: str) -> None:
    assert notification_of("runs", polled(run(status))) is None


def test_a_fetched_payload_has_the_event_id_of_its_webhook() -> None:
    content = json.dumps(run()).encode()
    about: dict[str, Any] = {"source": "webhook", "event_type": "workflow_run.completed", "time": TIME}
    fetched = observed(content, read_head(content), id="delivery-event_a", service="/everyrun/reconciler", **about)
    found = made("runs", read(fetched))
    assert json.loads(found.body)["eventId"] == "event_a"
    assert found.id == made("runs", webhook(run())).id


def test_a_run_with_fields_of_unexpected_types_is_sent_on() -> None:
    """The bridge accepts such a run, so it must not be left out here."""
    odd = run(workflow="workflow_a", startTime=7, endTime={"at": 1}, reviewedAt=False)
    assert json.loads(made("runs", webhook(odd)).body)["payload"] == odd


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"source":"webhook","run":{"id":1}}', b"[" * 100_000])
def test_an_invalid_record_is_left_to_the_quarantine(value: bytes) -> None:
    for topic, kind in (("runs", b"run-observed"), ("reports", b"submission-settled")):
        bad = Read(topic, b"k", value, [("ce_type", kind), ("ce_id", b"1")])
        assert notification_of(topic, bad) is None


def test_a_payload_that_is_not_utf8_is_left_to_the_quarantine() -> None:
    event = RunObserved(source="webhook", run=msgspec.Raw(b'{"id":"r","status":"PROCESSED","x":"\xff"}'))
    assert notification_of("runs", read(record("runs", event, key="k", id="1", source="/t", time=TIME))) is None


def of_everyrun(topic: str, event: msgspec.Struct, key: str) -> Notification:
    return made(topic, read(record(topic, event, key=key, id=f"{key}/1", source="/everyrun/x", time=TIME)))


def test_everyruns_events_have_type_time_and_data() -> None:
    settled = events.SubmissionSettled(submission_id="sub_1", workflow_id="w", expected=2, counts={"PROCESSED": 2})
    found = of_everyrun("reports", settled, "sub_1")
    assert (found.event, found.format, found.subject, found.workflow_id) == (
        "submission-settled",
        "everyrun",
        "sub_1",
        "w",
    )
    data = {"submission_id": "sub_1", "workflow_id": "w", "expected": 2, "counts": {"PROCESSED": 2}}
    assert json.loads(found.body) == {"type": "submission-settled", "timestamp": TIME, "data": data}
    doubt = events.BatchInDoubt(submission_id="sub_1", chunk="sub_1.c1", attempt=1, reason="timeout")
    assert json.loads(of_everyrun("batches", doubt, "sub_1.c1").body)["data"]["reason"] == "timeout"
    paused = events.WorkflowPaused(workflow_id="w", reason="402", by=None)
    assert of_everyrun("batches", paused, "w").event == "workflow-paused"


def test_a_quarantined_message_goes_on_without_its_bytes_and_headers() -> None:
    about: dict[str, Any] = {"source": "webhook/1", "topic": "webhook", "reason": "not JSON", "service": "/b"}
    kept = quarantined(**about, raw=b"secret bytes", headers=[("x-customer", "secret")], time=TIME)
    found = made("quarantine", read(kept))
    data = {"source": "webhook/1", "topic": "webhook", "partition": None, "offset": None, "reason": "not JSON"}
    assert json.loads(found.body) == {"type": "quarantined", "timestamp": TIME, "data": data}


def test_other_events_are_not_for_receivers() -> None:
    returned = events.BatchReturned(submission_id="s", chunk="c", attempt=1, reason="429")
    about = record("batches", returned, key="c", id="1", source="/t", time=TIME)
    assert notification_of("batches", read(about)) is None
