"""What a quarantined message is when it is looked at again."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from everyrun.log.cloudevents import Record, header
from everyrun.log.observation import interpret
from everyrun.log.quarantine import RETRY_OF
from everyrun.submission.quarantine import Quarantined, again
from tests.records import at, run_event

RUN = {"object": "workflow_run", "id": "run_1", "status": "PROCESSED", "batchId": "batch_1", "metadata": {}}


def webhook(event_type: str = "workflow_run.completed", **run: object) -> bytes:
    return json.dumps({"eventId": "event_1", "eventType": event_type, "payload": {**RUN, **run}}).encode()


def of_webhook(body: bytes) -> Quarantined:
    return Quarantined("webhook/x", "webhook", None, body, [("x-odd", b"1")], at(5))


def of_log(topic: str, record: Record, headers: Iterable[tuple[str, bytes]] | None = None) -> Quarantined:
    kept = list(record.headers if headers is None else headers)
    return Quarantined(f"{topic}/0/7", topic, record.key, record.value, kept, at(9))


def test_a_webhook_that_is_understood_now_is_the_record_that_the_bridge_would_have_written() -> None:
    found = again(of_webhook(webhook()))
    assert (found.outcome, found.detail) == ("published", "runs")
    assert found.record == interpret(webhook(), [], at(5)).record
    assert again(of_webhook(webhook())) == found


def test_a_step_s_event_is_dropped_by_name() -> None:
    found = again(of_webhook(webhook("workflow_run.step_run.processed", object="workflow_step_run")))
    assert (found.outcome, found.detail, found.record) == ("dropped", "step", None)


@pytest.mark.parametrize(("body", "reason"), [(b"\xff", "not UTF-8"), (webhook(status=3), "not a workflow run")])
def test_a_webhook_that_is_still_not_understood_says_why(body: bytes, reason: str) -> None:
    found = again(of_webhook(body))
    assert (found.outcome, found.record) == ("not-understood", None)
    assert reason in found.detail


def test_a_record_of_the_log_is_the_same_record_and_names_its_source() -> None:
    run = run_event("run_1", "batch_1", "PROCESSED", 3, key=None)
    found = again(of_log("runs", run))
    assert found.outcome == "published"
    assert found.record is not None
    assert (found.record.topic, found.record.key, found.record.value) == ("runs", run.key, run.value)
    assert header(found.record.headers, RETRY_OF) == "runs/0/7"
    assert header(found.record.headers, "ce_id") == header(run.headers, "ce_id")
    # Once more, as it came back: the header is there once.
    twice = again(of_log("runs", found.record))
    assert twice.record == found.record


def test_a_record_that_is_still_no_event_of_its_topic_says_why() -> None:
    run = run_event("run_1", "batch_1", "PROCESSED", 3, key=None)
    assert "ce_time" in again(of_log("runs", run, headers=[])).detail
    assert again(of_log("batches", run)).outcome == "not-understood"
    assert "none of ours" in again(of_log("elsewhere", run)).detail
