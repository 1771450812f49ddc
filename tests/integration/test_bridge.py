"""The bridge as a process, against a real Kafka."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from everyrun.extend.signature import sign
from everyrun.settings import Settings
from tests.conftest import eventually, free_port
from tests.integration.conftest import read_topic

pytestmark = pytest.mark.stack
SECRET = "wss_test"


def webhook(run_id: str, **payload: object) -> bytes:
    run = {"object": "workflow_run", "id": run_id, "status": "PROCESSED", "batchId": "b", "metadata": {}, **payload}
    return json.dumps({"eventId": f"e-{run_id}", "eventType": "workflow_run.completed", "payload": run}).encode()


async def post(http: httpx.AsyncClient, url: str, body: bytes) -> httpx.Response:
    stamp = str(int(time.time())).encode()
    headers = {"x-extend-request-timestamp": stamp, "x-extend-request-signature": sign(stamp, body, SECRET.encode())}
    return await http.post(url + "/webhooks/extend", content=body, headers=headers)


async def test_webhooks_answered_with_200_survive_a_kill(service, settings: Settings) -> None:
    bridge = await service("bridge", EVERYRUN_WEBHOOK_SECRETS=SECRET).ready()
    large = webhook("large", text="x" * (10 << 20))
    async with httpx.AsyncClient(timeout=30) as http:
        for number in range(50):
            assert (await post(http, bridge.url, webhook(f"r{number}"))).status_code == 200
        assert (await post(http, bridge.url, large)).status_code == 200
        assert (await post(http, bridge.url, b"\xff" * (11 << 20))).status_code == 200
        assert (await post(http, bridge.url, b"x" * (12 << 20))).status_code == 413
        assert (await http.post(bridge.url + "/webhooks/extend", content=large)).status_code == 401
    bridge.kill()
    runs = await read_topic(settings, "runs")
    assert sorted(headers["ce_id"] for _, headers in runs) == sorted(
        ["e-large", *(f"e-r{number}" for number in range(50))]
    )
    assert {headers["key"] for _, headers in runs} == {"b"}
    assert len(await read_topic(settings, "quarantine")) == 1


async def test_sigterm_stops_the_bridge_soon(service) -> None:
    bridge = await service("bridge", EVERYRUN_WEBHOOK_SECRETS=SECRET).ready()
    assert bridge.terminate() < 8


async def test_without_kafka_webhooks_get_503_and_readyz_names_kafka(service) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    bridge = service("bridge", EVERYRUN_WEBHOOK_SECRETS=SECRET, EVERYRUN_KAFKA_BOOTSTRAP=nowhere)

    async def alive() -> bool:
        return await bridge.status("/healthz") == 200

    await eventually(alive, "the bridge is alive", 20)
    assert await bridge.status("/readyz") == 503
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await post(http, bridge.url, webhook("r"))
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert bridge.terminate() < 8
