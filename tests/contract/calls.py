"""Call Extend through its own SDK, for the contract tests."""

from __future__ import annotations

from extend_ai import Extend

from tests.conftest import eventually
from tests.contract.conftest import KEY, WORKFLOW

EVENTS = ["workflow_run.completed", "workflow_run.failed", "workflow_run.needs_review", "workflow_run.cancelled"]


def sdk(url: str, key: str = KEY) -> Extend:
    return Extend(token=key, base_url=url, timeout=10)


def inputs(count: int) -> list[dict]:
    return [
        {
            "file": {"url": f"https://files.example.com/{n}.pdf"},
            "metadata": {"row": n, "extend:usage_tags": ["a b!", "c-d"]},
        }
        for n in range(count)
    ]


def submit(client: Extend, count: int, **more) -> str:
    batch = client.workflow_runs.create_batch(
        workflow={"id": WORKFLOW}, inputs=inputs(count), request_options={"max_retries": 0}, **more
    )
    assert batch.batch_id.startswith("batch_")
    return batch.batch_id


def listed(client: Extend, **query) -> list:
    found, token = [], None
    while True:
        page = client.workflow_runs.list(next_page_token=token, **query)
        found += page.data
        token = page.next_page_token
        if not token:
            return found


async def settled(client: Extend, batch_id: str, count: int) -> list:
    def done():
        runs = listed(client, batch_id=batch_id, max_page_size=1000)
        final = {"PROCESSED", "FAILED", "CANCELLED", "NEEDS_REVIEW"}
        return runs if len(runs) == count and all(str(run.status.value) in final for run in runs) else None

    return await eventually(done, "the batch is settled")


def headers(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "x-extend-api-version": "2026-02-09"}


def subscribe(client: Extend, url: str, **payload) -> str:
    options = {"payload": payload} if payload else None
    endpoint = client.webhook_endpoints.create(
        url=url, name="test", enabled_events=[], api_version="2026-02-09", advanced_options=options
    )
    client.webhook_subscriptions.create(
        webhook_endpoint_id=endpoint.id, resource_type="workflow", resource_id=WORKFLOW, enabled_events=EVENTS
    )
    return endpoint.signing_secret
