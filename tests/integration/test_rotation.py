"""The checklist of docs/how-to/rotate-webhook-secret.md, on a real bridge and the emulator: not one 401."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from everyrun.doctor.examine import examine
from everyrun.embedded.webhook import EVENTS, register_webhook
from everyrun.extend.client import API_VERSION
from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.contract.calls import sdk, submit
from tests.contract.conftest import KEY, WORKFLOW

pytestmark = pytest.mark.stack


async def counts(url: str) -> dict[str, float]:
    """The bridge's counters, by the value of their label."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(url + "/metrics")).text
    found = re.findall(r'^everyrun_bridge_(?:webhooks|signed)_total\{\w+="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {label: float(number) for label, number in found}


async def test_a_secret_is_rotated_without_a_single_401(service: Any, emulator_with: Any, settings: Settings) -> None:
    # A webhook that was refused would be sent again at once, and be seen.
    emulator, port = emulator_with("--run-seconds", "0", "--webhook-retry-seconds", "0.05"), free_port()
    url = f"http://127.0.0.1:{port}"
    client = sdk(emulator.url)
    running: list[Any] = []

    async def bridge(*secrets: str) -> None:
        for before in running[-1:]:
            before.terminate()
        running.append(
            service("bridge", EVERYRUN_WEBHOOK_SECRETS=",".join(secrets), EVERYRUN_BRIDGE_LISTEN=f"127.0.0.1:{port}")
        )
        running[-1].url = url
        await running[-1].ready()

    async def doctor(*secrets: str) -> dict[str, list[str]]:
        """The levels of what the doctor says of webhooks, by check."""
        given = settings.model_copy(
            update={
                "kafka_bootstrap": "",
                "postgres_dsn": SecretStr(""),
                "extend_base_url": emulator.url,
                "extend_api_key": SecretStr(KEY),
                "webhook_secrets": [SecretStr(secret) for secret in secrets],
                "bridge_url": url,
                "signed_url_origins": [emulator.url],
            }
        )
        levels: dict[str, list[str]] = {}
        for finding in await examine(given, WORKFLOW):
            levels.setdefault(finding.check, []).append(finding.level)
        return levels

    async def told(runs: int, signed: dict[str, float]) -> None:
        """Every run came, signed as said by the bridge that runs now, and nothing was refused."""
        submit(client, runs)

        async def done() -> bool:
            now = await counts(url)
            assert now["unauthorized"] == 0
            return {secret: now[secret] for secret in signed} == signed

        await eventually(done, f"webhooks are signed {signed}")

    old = await register_webhook(emulator.url, KEY, WORKFLOW, url + "/webhooks/extend", 131_072)
    await bridge(old)
    await told(3, {"1": 3})
    (first,) = client.webhook_endpoints.list().data

    # 1: a second endpoint, not subscribed yet. The doctor knows that a secret is missing here.
    second = client.webhook_endpoints.create(
        url=url + "/webhooks/extend", name="new", enabled_events=[], api_version=API_VERSION
    )
    new = second.signing_secret
    assert (await doctor(old))["webhook endpoint secrets"] == ["failed"]
    await told(2, {"1": 5})

    # 2, 3: the bridge takes both.
    assert (await doctor(old, new))["webhook address"] == ["ok", "failed"]
    await bridge(old, new)
    said = await doctor(old, new)
    assert said["webhook address"] == ["ok", "ok"]
    # One for each secret, and one for its readyz.
    assert said["bridge"] == ["ok", "ok", "ok"]
    assert "webhook endpoint secrets" not in said
    assert said[f"subscription to {WORKFLOW}"] == ["warning"]
    await told(2, {"1": 2, "2": 0})
    assert (await doctor(old, new))["signing secrets"] == ["warning"]

    # 4, 5: each event comes twice, signed with either.
    client.webhook_subscriptions.create(
        webhook_endpoint_id=second.id, resource_type="workflow", resource_id=WORKFLOW, enabled_events=EVENTS
    )
    await told(4, {"1": 6, "2": 4})
    said = await doctor(old, new)
    assert said["signing secrets"] == said[f"subscription to {WORKFLOW}"] == ["ok"]

    # 6 to 8: nothing new is signed with the old one; then it goes.
    for subscription in client.webhook_subscriptions.list(webhook_endpoint_id=first.id).data:
        client.webhook_subscriptions.delete(subscription.id)
    await told(3, {"1": 6, "2": 7})
    client.webhook_endpoints.delete(first.id)
    await bridge(new)
    await told(5, {"1": 5})
    said = await doctor(new)
    assert {level for check in said for level in said[check] if "webhook" in check or check == "bridge"} == {"ok"}
    stats = httpx.get(emulator.url + "/_emulator/stats").json()["webhooks"]
    assert stats["failed_attempts"] == stats["given_up"] == stats["dropped"] == 0
    # The old secret opens nothing any more.
    assert (await doctor(old))["webhook address"] == ["failed"]
