"""The reconciler as a process, against a real Kafka, a real Postgres and the emulator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest

from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.contract.conftest import KEY, WORKFLOW
from tests.integration.conftest import read_topic
from tests.integration.services import ServiceProcess

pytestmark = pytest.mark.stack
HEADERS = {"authorization": f"Bearer {KEY}", "x-extend-api-version": "2026-02-09"}


def make_batch(url: str, size: int) -> str:
    inputs = [{"file": {"url": f"https://files.example/{n}.pdf"}, "metadata": {"n": n}} for n in range(size)]
    body = {"workflow": {"id": WORKFLOW}, "inputs": inputs}
    answer = httpx.post(url + "/workflow_runs/batch", json=body, headers=HEADERS)
    answer.raise_for_status()
    return answer.json()["batchId"]


async def note(settings: Settings, state: str, *, batch_id: str | None = None, size: int = 1) -> None:
    """Insert an attempt, as the processor would."""
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    await connection.execute(
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state,"
        " requested_at, submitted_at, input_ids) values ($1, 1, $2, 's', $3, $4, $5, $6, $7, '{}')",
        f"c-{batch_id or state}",
        batch_id,
        WORKFLOW,
        size,
        state,
        datetime.now(UTC) - timedelta(seconds=10),
        datetime.now(UTC) if batch_id else None,
    )
    if state == "IN_DOUBT":
        await connection.execute(
            "insert into everyrun_queue.submissions (submission_id, workflow_id, expected, batches, content_hash,"
            " created_at) values ('s', $1, 1, 1, '', now())",
            WORKFLOW,
        )
        await connection.execute(
            "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, attempt)"
            " values ('c-IN_DOUBT', 's', 1, 1, 'in_doubt', 1)"
        )
    await connection.close()


def variables(url: str, **more: object) -> dict[str, object]:
    return {
        "EXTEND_API_KEY": KEY,
        "EVERYRUN_EXTEND_BASE_URL": url,
        "EVERYRUN_PLAN": "enterprise",
        "EVERYRUN_POLL_FIRST_AFTER": 0.5,
        "EVERYRUN_POLL_EVERY": 1,
        "EVERYRUN_POLL_GRACE": 0,
        "EVERYRUN_SWEEP_IN_DOUBT_EVERY": 1,
        "EVERYRUN_CALL_TIMEOUT": 5,
        **more,
    }


async def until_runs(settings: Settings, run_ids: set[str]) -> list:
    """Wait until ``runs`` has all these runs at rest, and return its records."""
    found: list = []

    async def all_there() -> bool:
        found[:] = await read_topic(settings, "runs")
        return run_ids <= {event["run"]["id"] for event, _ in found}

    await eventually(all_there, "the log tells of every run", 120)
    return found


@pytest.mark.parametrize(
    "faults",
    ["none", pytest.param("get_429=0.1,get_5xx=0.1,garbage=0.1,list_lag=3", marks=pytest.mark.chaos)],
)
async def test_batch_is_accounted_for_without_any_webhook(service, emulator_with, settings, faults) -> None:
    emulator = emulator_with("--run-seconds", "0.2:1", "--faults", faults)
    batch = make_batch(emulator.url, 120)
    await note(settings, "SUBMITTED", batch_id=batch, size=120)
    reconciler = await service("reconciler", **variables(emulator.url)).ready()
    truth = {line["run_id"] for line in emulator.truth()}
    assert len(truth) == 120
    found = await until_runs(settings, truth)
    assert {headers["key"] for _, headers in found} == {batch}
    assert {event["source"] for event, _ in found} == {"poll"}
    assert all(event["run"]["metadata"] for event, _ in found)
    assert all(headers["ce_id"].startswith(f"poll/{event['run']['id']}/") for event, headers in found)
    # A run at rest is fetched once, although the processor has not applied it yet.
    assert len(found) == 120
    assert reconciler.terminate() < 8


async def test_batch_of_an_unanswered_call_is_found(service, emulator_with, settings) -> None:
    emulator = emulator_with("--run-seconds", "0.2:1")
    ours, other = make_batch(emulator.url, 3), make_batch(emulator.url, 3)
    await note(settings, "SUBMITTED", batch_id=other)
    await note(settings, "IN_DOUBT")
    await service("reconciler", **variables(emulator.url, EVERYRUN_POLL_FIRST_AFTER=600)).ready()

    async def found() -> list:
        return await read_topic(settings, "runs")

    records = await eventually(found, "a run of the unknown batch is in the log", 30)
    assert [(event["run"]["batchId"], event["source"]) for event, _ in records] == [(ours, "poll")]
    assert records[0][0]["run"]["metadata"]["n"] in (0, 1, 2)


async def test_runs_without_a_webhook_cost_one_request_each_and_little_more(service, emulator_with, settings) -> None:
    emulator = emulator_with("--run-seconds", "0.2:1")
    batches = [make_batch(emulator.url, 200) for _ in range(2)]
    for batch in batches:
        await note(settings, "SUBMITTED", batch_id=batch, size=200)
    await service("reconciler", **variables(emulator.url, EVERYRUN_POLL_EVERY=5)).ready()
    asked = 0

    async def asked_for_all() -> bool:
        nonlocal asked
        asked = httpx.get(emulator.url + "/_emulator/stats").json()["requests"]["get"]
        return asked >= 400 + len(batches)

    await eventually(asked_for_all, "as many requests as it takes at the least", 120)
    # One request per run, one full page per batch, and a fifth more for polls before a run had ended.
    assert asked <= 1.2 * 400 + len(batches)
    found = await until_runs(settings, {line["run_id"] for line in emulator.truth()})
    assert len(found) == 400


async def test_another_reconciler_leads_if_the_leader_is_killed(service, emulator_with, settings) -> None:
    emulator = emulator_with("--run-seconds", "0.1:0.3")
    first = await service("reconciler", **variables(emulator.url)).ready()
    one = make_batch(emulator.url, 3)
    await note(settings, "SUBMITTED", batch_id=one, size=3)
    await until_runs(settings, {line["run_id"] for line in emulator.truth()})
    second = await service("reconciler", **variables(emulator.url)).ready()
    first.kill()
    other = make_batch(emulator.url, 3)
    await note(settings, "SUBMITTED", batch_id=other, size=3)
    await until_runs(settings, {line["run_id"] for line in emulator.truth()})
    assert second.process.poll() is None


@pytest.mark.parametrize("expired", [0, 1])
async def test_deferred_delivery_is_fetched_by_link_or_by_run_id(service, emulator_with, settings, expired) -> None:
    emulator = emulator_with("--run-seconds", "0.5:1", "--faults", f"url_expired={expired}")
    await bridge_fed_by(service, emulator.url).ready()
    more = {"EVERYRUN_SIGNED_URL_ORIGINS": emulator.url, "EVERYRUN_POLL_FIRST_AFTER": 600}
    await service("reconciler", **variables(emulator.url, **more)).ready()
    make_batch(emulator.url, 20)
    found = await until_runs(settings, {line["run_id"] for line in emulator.truth()})
    deliveries = await read_topic(settings, "deliveries")
    assert len(deliveries) == 20
    if expired:
        assert {event["source"] for event, _ in found} == {"poll"}
    else:
        assert {event["source"] for event, _ in found} == {"webhook"}
        assert {headers["ce_id"] for _, headers in found} == {f"delivery-{h['ce_id']}" for _, h in deliveries}
        assert {headers["ce_time"] for _, headers in found} == {headers["ce_time"] for _, headers in deliveries}


def bridge_fed_by(service, url: str) -> ServiceProcess:
    """Yield a bridge to which the emulator sends every run as a link."""
    port = free_port()
    body = {
        "url": f"http://127.0.0.1:{port}/webhooks/extend",
        "name": "test",
        "enabledEvents": [],
        "apiVersion": "2026-02-09",
        "advancedOptions": {"payload": {"format": "url", "urlThresholdBytes": 0}},
    }
    endpoint = httpx.post(url + "/webhook_endpoints", json=body, headers=HEADERS)
    endpoint.raise_for_status()
    subscription = {
        "webhookEndpointId": endpoint.json()["id"],
        "resourceType": "workflow",
        "resourceId": WORKFLOW,
        "enabledEvents": ["workflow_run.completed", "workflow_run.failed"],
    }
    httpx.post(url + "/webhook_subscriptions", json=subscription, headers=HEADERS).raise_for_status()
    secret = endpoint.json()["signingSecret"]
    bridge = service("bridge", EVERYRUN_WEBHOOK_SECRETS=secret, EVERYRUN_BRIDGE_LISTEN=f"127.0.0.1:{port}")
    bridge.url = f"http://127.0.0.1:{port}"
    return bridge
