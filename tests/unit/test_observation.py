"""A signed body becomes an observation, a delivery, a counted step, or a quarantined message with its reason."""

from __future__ import annotations

import base64
import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.log.cloudevents import header
from everyrun.log.events import DeliveryDeferred, MessageQuarantined, RunObserved
from everyrun.log.observation import SELF_TEST, interpret

TIME = "2026-01-01T00:00:00.000Z"
RUN = {
    "object": "workflow_run",
    "id": "workflow_run_1",
    "status": "PROCESSED",
    "batchId": "batch_1",
    "metadata": {"a": 1},
}


def body(**event) -> bytes:
    return json.dumps(event).encode()


def test_a_run_is_observed_byte_for_byte() -> None:
    payload = (
        b'{ "object":"workflow_run",\n"id":"workflow_run_1", "status":"PROCESSED",'
        b'"batchId":"batch_1","x":1.0e2, "y":"\\u00e9" }'
    )
    whole = b'{"eventId":"event_1","eventType":"workflow_run.completed","payload":' + payload + b"}"
    outcome, record = interpret(whole, [], TIME)
    assert outcome == "observed"
    assert (record.topic, record.key) == ("runs", b"batch_1")
    event = msgspec.json.decode(record.value, type=RunObserved)
    assert (event.source, event.event_type, event.truncated) == ("webhook", "workflow_run.completed", False)
    assert bytes(event.run) == payload
    expected = {"ce_id": "event_1", "ce_time": TIME, "ce_source": "/everyrun/bridge", "ce_subject": "workflow_run_1"}
    assert {name: header(record.headers, name) for name in expected} == expected


def test_a_run_without_a_batch_is_keyed_by_its_id() -> None:
    run = {**RUN, "batchId": None}
    assert (
        interpret(body(eventId="e", eventType="workflow_run.failed", payload=run), [], TIME).record.key
        == b"workflow_run_1"
    )


def test_an_event_without_an_id_gets_one_from_its_bytes() -> None:
    whole = body(eventType="workflow_run.failed", payload=RUN)
    record = interpret(whole, [], TIME).record
    assert header(record.headers, "ce_id") == "webhook-" + hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("event_type", ["workflow_run.needs_review", "workflow_run.of_tomorrow", None])
def test_known_and_new_events_with_a_run_are_observed(event_type) -> None:
    outcome, record = interpret(body(eventId="e", eventType=event_type, payload=RUN), [], TIME)
    assert outcome == "observed"
    assert msgspec.json.decode(record.value, type=RunObserved).event_type == event_type


def test_a_signed_link_is_deferred() -> None:
    link = {"object": "signed_data_url", "data": "https://s/x", "id": "workflow_run_1", "metadata": {"a": 1}}
    outcome, record = interpret(body(eventId="event_1", eventType="workflow_run.completed", payload=link), [], TIME)
    assert (outcome, record.topic, record.key) == ("deferred", "deliveries", b"workflow_run_1")
    assert header(record.headers, "ce_id") == "event_1"
    assert msgspec.json.decode(record.value, type=DeliveryDeferred) == DeliveryDeferred(
        "workflow_run.completed", "workflow_run_1", "https://s/x", {"a": 1}
    )


@pytest.mark.parametrize(
    "payload",
    [
        {"object": "workflow_step_run", "id": "s", "workflowRunId": "r", "status": "PROCESSED"},
        {"object": "signed_data_url", "data": "https://s/x", "id": "s"},
        {"workflowRunId": "r"},
    ],
)
def test_steps_are_dropped_by_name(payload) -> None:
    event = body(eventId="e", eventType="workflow_run.step_run.processed", payload=payload)
    assert interpret(event, [], TIME) == ("step", None)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (b"", "not a webhook event"),
        (b"not json", "not a webhook event"),
        (b"[]", "not a webhook event"),
        (b"{}", "not a webhook event"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (body(eventId=5, eventType="workflow_run.completed", payload=RUN), "not a webhook event"),
        (body(eventType="extract_run.processed", payload=RUN), "event type not for workflows: extract_run.processed"),
        (body(eventType="workflow.deployed", payload={}), "event type not for workflows"),
        (body(eventType="workflow_run.completed", payload=None), "not a webhook event"),
        (body(eventType="workflow_run.completed", payload={}), "not a workflow run"),
        (body(eventType="workflow_run.completed", payload={**RUN, "id": ""}), "id is empty"),
        (body(eventType="workflow_run.completed", payload={**RUN, "status": 3}), "not a workflow run"),
        (body(eventType="workflow_run.completed", payload={**RUN, "object": "file"}), "not a workflow run but a file"),
        (body(eventType="workflow_run.completed", payload={"object": "signed_data_url", "data": "u"}), "not a webhook"),
        (b'{"payload":{"object":"workflow_run","id":"\\ud800","status":"FAILED"}}', "not a w"),
    ],
)
def test_invalid_bodies_are_quarantined_as_received(whole, reason) -> None:
    headers = [(b"content-type", b"text/plain"), (b"x-extend-request-signature", b"0" * 64), (b"x-odd", b"\xff")]
    outcome, record = interpret(whole, headers, TIME)
    assert (outcome, record.topic) == ("quarantined", "quarantine")
    event = msgspec.json.decode(record.value, type=MessageQuarantined)
    assert base64.b64decode(event.raw) == whole
    assert reason in event.reason
    assert event.source == header(record.headers, "ce_id") == "webhook/" + hashlib.sha256(whole).hexdigest()
    assert (event.topic, event.partition, event.offset) == ("webhook", None, None)
    assert event.headers == [("content-type", "text/plain"), ("x-odd", "\xff")]


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.text(),
        lambda c: st.dictionaries(
            st.sampled_from(["eventId", "eventType", "payload", "object", "id", "status", "data"]), c
        ),
    ).map(lambda v: json.dumps(v).encode())
)
def test_no_body_raises(whole) -> None:
    outcome, record = interpret(whole, [], TIME)
    assert (record is None) == (outcome in ("step", "self_test"))


def test_a_self_test_is_dropped_by_name() -> None:
    assert interpret(SELF_TEST, [], TIME) == ("self_test", None)


def test_the_largest_body_fits_a_record_of_the_quarantine() -> None:
    record = interpret(b"x" * (11 << 20), [(b"h", b"v" * 10_000)] * 100, TIME).record
    assert len(record.value) < (16 << 20) - 100_000
