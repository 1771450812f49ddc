"""The outcome of retrying a quarantined message."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from everyrun.log.cloudevents import Record, header
from everyrun.log.observation import interpret
from everyrun.log.quarantine import RETRY_OF
from everyrun.submission.decisions.quarantine import QuarantinedMessage, retry_message
from tests.records import at, run_event

RUN = {"object": "workflow_run", "id": "run_1", "status": "PROCESSED", "batchId": "batch_1", "metadata": {}}


def webhook(event_type: str = "workflow_run.completed", **run: object) -> bytes:
    return json.dumps({"eventId": "event_1", "eventType": event_type, "payload": {**RUN, **run}}).encode()


def of_webhook(body: bytes) -> QuarantinedMessage:
    return QuarantinedMessage("webhook/x", "webhook", None, body, [("x-odd", b"1")], at(5))


def of_log(topic: str, record: Record, headers: Iterable[tuple[str, bytes]] | None = None) -> QuarantinedMessage:
    kept = list(record.headers if headers is None else headers)
    return QuarantinedMessage(f"{topic}/0/7", topic, record.key, record.value, kept, at(9))


def test_an_understood_webhook_gives_the_record_of_the_bridge() -> None:
    found = retry_message(of_webhook(webhook()))
    assert (found.outcome, found.detail) == ("published", "runs")
    assert found.record == interpret(webhook(), [], at(5)).record
    assert retry_message(of_webhook(webhook())) == found


def test_an_event_of_a_step_is_dropped() -> None:
    found = retry_message(of_webhook(webhook("workflow_run.step_run.processed", object="workflow_step_run")))
    assert (found.outcome, found.detail, found.record) == ("dropped", "step", None)


@pytest.mark.parametrize(("body", "reason"), [(b"\xff", "not UTF-8"), (webhook(status=3), "not a workflow run")])
def test_a_webhook_that_is_still_not_understood_gives_the_reason(body: bytes, reason: str) -> None:
    found = retry_message(of_webhook(body))
    assert (found.outcome, found.record) == ("not-understood", None)
    assert reason in found.detail


def test_a_record_of_the_log_is_republished_with_its_source() -> None:
    run = run_event("run_1", "batch_1", "PROCESSED", 3, key=None)
    found = retry_message(of_log("runs", run))
    assert found.outcome == "published"
    assert found.record is not None
    assert (found.record.topic, found.record.key, found.record.value) == ("runs", run.key, run.value)
    assert header(found.record.headers, RETRY_OF) == "runs/0/7"
    assert header(found.record.headers, "ce_id") == header(run.headers, "ce_id")
    # Retried again from the log: the record has the header only once.
    twice = retry_message(of_log("runs", found.record))
    assert twice.record == found.record


def test_a_record_that_is_still_invalid_gives_the_reason() -> None:
    run = run_event("run_1", "batch_1", "PROCESSED", 3, key=None)
    assert "ce_time" in retry_message(of_log("runs", run, headers=[])).detail
    assert retry_message(of_log("batches", run)).outcome == "not-understood"
    assert "has no topic elsewhere" in retry_message(of_log("elsewhere", run)).detail
