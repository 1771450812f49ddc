"""The emulator resumes without loss after it was killed at any moment."""

from __future__ import annotations

import io
import json

import httpx

from tests.conftest import eventually
from tests.contract.calls import EVENTS, listed, sdk, settled, submit, subscribe
from tests.contract.conftest import WORKFLOW, Inbox


def received_runs(inbox: Inbox) -> set[str]:
    return {json.loads(body)["payload"]["id"] for _, body in inbox.deliveries}


async def test_no_run_and_no_webhook_is_lost_in_a_kill(emulator_with, inbox: Inbox):
    emulator = emulator_with("--run-seconds", "0.5:1.5", "--faults", "reorder=0.3,duplicate=0.2")
    client = sdk(emulator.url)
    subscribe(client, inbox.url)
    batch_id = submit(client, 200)
    for enough in (20, 120):
        await eventually(lambda enough=enough: len(inbox.deliveries) >= enough, "some webhooks came")
        emulator.kill()
        emulator.start()
    ids = {run.id for run in await settled(client, batch_id, 200)}
    await eventually(lambda: received_runs(inbox) == ids, "every webhook came")
    await eventually(lambda: all(line["webhooks"]["delivered"] == 1 for line in emulator.truth()), "all is counted")
    assert {line["run_id"] for line in emulator.truth()} == ids


async def test_the_retries_of_a_webhook_resume(emulator_with, inbox: Inbox):
    emulator = emulator_with("--run-seconds", "0", "--faults", "drop=0.5", "--webhook-retry-seconds", "0.3")
    client = sdk(emulator.url)
    subscribe(client, inbox.url)
    inbox.status = 503
    submit(client, 20)
    await eventually(lambda: len(inbox.deliveries) >= 5, "webhooks were tried")
    before = emulator.truth()
    emulator.kill()
    inbox.deliveries.clear()
    inbox.status = 200
    emulator.start()
    expected = {line["run_id"] for line in before if not line["webhooks"]["dropped"]}
    assert 0 < len(expected) < 20
    await eventually(lambda: received_runs(inbox) == expected, "what was not dropped came")
    await eventually(
        lambda: all(line["webhooks"]["delivered"] + line["webhooks"]["dropped"] == 1 for line in emulator.truth()),
        "all is counted",
    )
    assert received_runs(inbox) == expected


async def test_answered_changes_survive_a_kill(emulator_with):
    emulator = emulator_with("--run-seconds", "60")
    client = sdk(emulator.url)
    file = client.files.upload(file=("a.pdf", io.BytesIO(b"%PDF-1.4"), "application/pdf"))
    endpoint = client.webhook_endpoints.create(
        url="https://example.com/", name="kept", enabled_events=[], api_version="2026-02-09"
    )
    about = {"webhook_endpoint_id": endpoint.id, "resource_type": "workflow", "resource_id": WORKFLOW}
    subscription = client.webhook_subscriptions.create(**about, enabled_events=EVENTS[:1])
    batch_id = submit(client, 5)
    first, second, third, *_ = (run.id for run in listed(client, batch_id=batch_id))
    client.workflow_runs.update(first, metadata={"row": "changed"})
    client.workflow_runs.delete(second)
    client.workflow_runs.cancel(third)
    before = emulator.truth()
    requests = httpx.get(emulator.url + "/_emulator/stats").json()["requests"]
    emulator.kill()
    emulator.start()
    assert httpx.get(emulator.url + "/_emulator/stats").json()["requests"] == requests
    assert client.workflow_runs.retrieve(first).metadata["row"] == "changed"
    assert client.webhook_endpoints.retrieve(endpoint.id).name == "kept"
    assert client.webhook_subscriptions.retrieve(subscription.id).enabled_events == EVENTS[:1]
    run = client.workflow_runs.create(workflow={"id": WORKFLOW}, file={"id": file.id})
    assert (run.files[0].id, run.files[0].name, run.status.value) == (file.id, "a.pdf", "PROCESSING")
    still = ("run_id", "batch_id", "metadata", "created_at", "deleted")
    after = emulator.truth()[: len(before)]
    assert [[line[name] for name in still] for line in after] == [[line[name] for name in still] for line in before]
    statuses = {line["run_id"]: line["status"] for line in after}
    assert statuses[third] in ("CANCELLING", "CANCELLED")
    again = submit(client, 1)
    assert again != batch_id
