"""Extend's own SDK cannot tell the emulator from Extend."""

from __future__ import annotations

import io
import json

import httpx
import pytest
from extend_ai.errors import BadRequestError, NotFoundError, TooManyRequestsError, UnauthorizedError
from extend_ai.types import (
    StepRun_Extract,
    StepRun_Parse,
    WebhookEvent_WorkflowRunCompleted,
    WebhookEvent_WorkflowRunFailed,
    WorkflowRun,
)
from extend_ai.wrapper.webhooks import Webhooks

from tests.conftest import eventually
from tests.contract.calls import EVENTS, headers, inputs, listed, sdk, settled, submit, subscribe
from tests.contract.conftest import KEY, WORKFLOW, Inbox


async def test_a_batch_is_created_listed_in_pages_and_retrieved(emulator):
    client = sdk(emulator.url)
    batch_id = submit(client, 25)
    await settled(client, batch_id, 25)
    runs = listed(client, batch_id=batch_id, sort_by="createdAt", sort_dir="asc", max_page_size=7)
    assert len({run.id for run in runs}) == 25
    assert [run.created_at for run in runs] == sorted(run.created_at for run in runs)
    whole = client.workflow_runs.retrieve(runs[0].id)
    assert isinstance(whole, WorkflowRun)
    assert whole.batch_id == batch_id
    assert whole.metadata["extend:usage_tags"] == ["ab", "c-d"]
    assert {type(step) for step in whole.step_runs} == {StepRun_Parse, StepRun_Extract}
    extract = next(step for step in whole.step_runs if isinstance(step, StepRun_Extract))
    assert extract.result.extract_run.output.value["total"] > 0
    raw = httpx.get(f"{emulator.url}/workflow_runs/{whole.id}", headers=headers()).json()
    nullable = "batchId usage failureReason failureMessage initialRunAt startTime endTime reviewedByUser reviewedAt"
    assert {*nullable.split(), "rejectionNote"} <= set(raw)


def test_a_wrong_batch_call_is_refused(emulator):
    client = sdk(emulator.url)
    with pytest.raises(BadRequestError):
        submit(client, 1001)
    with pytest.raises(BadRequestError):
        submit(client, 0)
    for priority in (0, 101):
        with pytest.raises(BadRequestError):
            submit(client, 1, priority=priority)
    submit(client, 1, priority=1)
    submit(client, 1, priority=100)
    with pytest.raises(NotFoundError):
        client.workflow_runs.create_batch(workflow={"id": "workflow_other"}, inputs=inputs(1))
    with pytest.raises(NotFoundError):
        client.workflow_runs.create_batch(workflow={"id": WORKFLOW, "version": "9"}, inputs=inputs(1))
    with pytest.raises(BadRequestError):
        client.workflow_runs.create_batch(
            workflow={"id": WORKFLOW}, inputs=[{"file": {"id": "file_unknown"}, "metadata": {}}]
        )
    with pytest.raises(BadRequestError):
        client.workflow_runs.create_batch(
            workflow={"id": WORKFLOW}, inputs=[{"file": {"text": "x"}, "metadata": {"big": "x" * 10_240}}]
        )
    with pytest.raises(UnauthorizedError):
        submit(sdk(emulator.url, "sk_wrong"), 1)
    with pytest.raises(NotFoundError):
        client.workflow_runs.retrieve("workflow_run_unknown")
    answer = httpx.get(emulator.url + "/workflow_runs", headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert set(answer.json()) >= {"code", "message", "retryable", "requestId"}
    assert answer.headers["x-extend-request-id"] == answer.json()["requestId"]


def test_a_cursor_is_valid_only_with_its_filters(emulator):
    client = sdk(emulator.url)
    batch_id = submit(client, 3)
    page = client.workflow_runs.list(batch_id=batch_id, max_page_size=1)
    with pytest.raises(BadRequestError):
        client.workflow_runs.list(batch_id=batch_id, status="FAILED", next_page_token=page.next_page_token)
    with pytest.raises(BadRequestError):
        client.workflow_runs.list(next_page_token="bm90IG91cnM=")
    assert client.workflow_runs.list(batch_id="batch_unknown").data == []


async def test_runs_are_updated_cancelled_and_deleted_and_files_uploaded(emulator_with):
    client = sdk(emulator_with("--run-seconds", "30").url)
    batch_id = submit(client, 2)
    first, second = (run.id for run in listed(client, batch_id=batch_id))
    updated = client.workflow_runs.update(first, metadata={"row": "changed", "new": 1})
    assert (updated.metadata["row"], updated.metadata["new"]) == ("changed", 1)
    assert client.workflow_runs.cancel(first).status.value in ("CANCELLING", "CANCELLED")
    await eventually(lambda: client.workflow_runs.retrieve(first).status.value == "CANCELLED", "it is cancelled")
    with pytest.raises(BadRequestError):
        client.workflow_runs.cancel(first)
    client.workflow_runs.delete(second)
    with pytest.raises(NotFoundError):
        client.workflow_runs.retrieve(second)
    file = client.files.upload(file=("a.pdf", io.BytesIO(b"%PDF-1.4"), "application/pdf"))
    run = client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"id": file.id})
    assert run.files[0].id == file.id


def test_too_many_requests_answer_429(emulator_with):
    client = sdk(emulator_with("--plan", "payg").url)

    def ask() -> None:
        for _ in range(40):
            client.workflow_runs.list(request_options={"max_retries": 0})

    with pytest.raises(TooManyRequestsError) as raised:
        ask()
    assert raised.value.headers["retry-after"] == "1"


def test_endpoints_and_subscriptions_are_managed(emulator):
    client = sdk(emulator.url)
    with pytest.raises(BadRequestError):
        client.webhook_endpoints.create(
            url="https://example.com/", name="x", enabled_events=["workflow_run.completed"], api_version="2026-02-09"
        )
    made = client.webhook_endpoints.create(
        url="https://example.com/", name="x", enabled_events=[], api_version="2026-02-09"
    )
    assert made.signing_secret.startswith("wss_")
    assert client.webhook_endpoints.retrieve(made.id).name == "x"
    assert made.id in [endpoint.id for endpoint in client.webhook_endpoints.list(max_page_size=100).data]
    about = {"webhook_endpoint_id": made.id, "resource_type": "workflow", "resource_id": WORKFLOW}
    one = client.webhook_subscriptions.create(**about, enabled_events=EVENTS[:1])
    again = client.webhook_subscriptions.create(**about, enabled_events=EVENTS)
    assert (one.id, again.enabled_events) == (again.id, EVENTS)
    assert client.webhook_subscriptions.update(one.id, enabled_events=EVENTS[:2]).enabled_events == EVENTS[:2]
    assert client.webhook_endpoints.update(made.id, name="y").name == "y"
    client.webhook_endpoints.delete(made.id)
    with pytest.raises(NotFoundError):
        client.webhook_subscriptions.retrieve(one.id)


async def test_the_sdk_verifies_webhooks(emulator_with, inbox: Inbox):
    emulator = emulator_with("--run-seconds", "0.05:0.2", "--faults", "fail=0.3")
    client = sdk(emulator.url)
    secret = subscribe(client, inbox.url)
    batch_id = submit(client, 40)
    await eventually(lambda: len(inbox.deliveries) >= 40, "every webhook came")
    kinds = set()
    for head, body in inbox.deliveries:
        event = Webhooks().verify_and_parse(body.decode(), head, secret)
        assert event.payload.batch_id == batch_id
        kinds.add(type(event))
        if isinstance(event, WebhookEvent_WorkflowRunFailed):
            assert event.payload.failure_reason
            assert event.payload.failure_message
    assert kinds == {WebhookEvent_WorkflowRunCompleted, WebhookEvent_WorkflowRunFailed}


async def test_the_sdk_fetches_signed_links(emulator_with, inbox: Inbox):
    emulator = emulator_with("--run-seconds", "0.05")
    client = sdk(emulator.url)
    secret = subscribe(client, inbox.url, format="url", url_threshold_bytes=100)
    submit(client, 3)
    await eventually(lambda: len(inbox.deliveries) == 3, "every webhook came")
    head, body = inbox.deliveries[0]
    event = Webhooks().verify_and_parse(body.decode(), head, secret, allow_signed_url=True)
    payload = json.loads(body)["payload"]
    assert set(payload) == {"object", "data", "id", "metadata"}
    fetched = await Webhooks().fetch_signed_payload(event)
    assert fetched.payload.id == payload["id"]
    link = payload["data"]
    assert httpx.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 403


async def test_a_delivery_is_retried_with_the_same_event_id(emulator_with, inbox: Inbox):
    emulator = emulator_with("--run-seconds", "0", "--webhook-retry-seconds", "0.05")
    client = sdk(emulator.url)
    subscribe(client, inbox.url)
    inbox.status = 500
    submit(client, 1)
    await eventually(lambda: len(inbox.deliveries) >= 3, "it was tried again")
    inbox.status = 200
    assert len({json.loads(body)["eventId"] for _, body in inbox.deliveries}) == 1


async def test_the_same_seed_makes_the_same_choices(emulator_with):
    outcomes = []
    for _ in range(2):
        emulator = emulator_with("--run-seconds", "0", "--seed", "7", "--faults", "fail=0.5")
        client = sdk(emulator.url)
        batch_id = submit(client, 50)
        await settled(client, batch_id, 50)
        outcomes.append([(line["run_id"], line["status"]) for line in emulator.truth()])
    assert outcomes[0] == outcomes[1]
    assert {status for _, status in outcomes[0]} == {"PROCESSED", "FAILED"}


async def test_one_result_in_a_hundred_is_large(emulator):
    client = sdk(emulator.url)
    batch_id = submit(client, 200)
    runs = await settled(client, batch_id, 200)
    runs = sorted(runs, key=lambda run: run.created_at)[-110:]
    sizes = [await size_of(emulator.url, run.id) for run in runs]
    assert all(2_048 <= size <= 6_144 or size > 200_000 for size in sizes), sizes
    assert 1 <= sum(size > 200_000 for size in sizes) <= 2


async def size_of(url: str, run_id: str) -> int:
    async def got() -> int | None:
        answer = httpx.get(f"{url}/workflow_runs/{run_id}", headers=headers())
        return len(answer.content) if answer.status_code == 200 else None

    return await eventually(got, "the rate limit lets it pass")
