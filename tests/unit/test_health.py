"""Ready means that callers can be served. Parts that only delay work are reported beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from everyrun.health import Health
from everyrun.query import app as query
from everyrun.replay import app as replay
from everyrun.serve import StartingApp, with_health
from everyrun.settings import Settings
from everyrun.submission import app as submission
from tests.conftest import eventually, free_port


def readyz(health: Health) -> tuple[int, dict[str, object]]:
    status, body = health.answer("/readyz")
    return status, msgspec.json.decode(body)


def test_needed_parts_decide_readiness_and_reported_parts_do_not() -> None:
    health = Health("database", at_start=("kafka",), reported=("jobs",))
    starting = {"database": "starting", "kafka": "starting", "jobs": "starting"}
    assert readyz(health) == (503, {"status": "not ready", "waiting": starting, "missing": ["database", "kafka"]})
    health.ready("database")
    assert readyz(health)[0] == 503
    health.ready("kafka")
    assert readyz(health) == (200, {"status": "ready", "waiting": {"jobs": "starting"}})
    health.ready("jobs")
    assert readyz(health) == (200, {"status": "ready"})
    health.not_ready("kafka", "no answer within 6 s")
    assert readyz(health) == (200, {"status": "ready", "waiting": {"kafka": "no answer within 6 s"}})
    health.not_ready("database", "gone")
    assert readyz(health)[0] == 503
    health.ready("database")
    # A part that was not declared counts as needed.
    health.not_ready("writing", "a standby")
    assert readyz(health)[1]["missing"] == ["writing"]
    assert health.answer("/healthz")[0] == 200
    health.fail("stuck")
    assert readyz(health) == (503, {"status": "failed", "reason": "stuck"})


def test_the_metrics_show_readiness_and_waiting_parts() -> None:
    health, registry = Health("database", reported=("jobs",)), CollectorRegistry()
    with_health(health, None, registry)
    health.ready("database")
    shown = generate_latest(registry).decode()
    assert "everyrun_ready 1.0" in shown
    assert 'everyrun_waiting{part="jobs"} 1.0' in shown


async def test_a_starting_app_answers_503_until_its_application_is_set() -> None:
    health = Health("database")
    starting = StartingApp(health)
    transport = httpx.ASGITransport(with_health(health, starting))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        for path in ("/v1/submissions", "/", "/openapi.json"):
            answer = await http.post(path, content=b"{}")
            assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE"), path
            assert answer.headers["retry-after"] == "1"
            assert "database" in answer.json()["message"]
        assert (await http.get("/healthz")).status_code == 200
        starting.app = httpx_app(204)
        assert (await http.get("/v1/submissions")).status_code == 204


def httpx_app(status: int) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize(("name", "service"), [("query", query), ("replay", replay), ("submission", submission)])
async def test_a_service_listens_while_postgres_is_unavailable_at_its_start(name: str, service: Any) -> None:
    """Query and replay did not listen at all; submission answered 404, as if its API did not exist."""
    port, nobody = free_port(), free_port()
    settings = Settings(
        postgres_dsn=f"postgresql://nobody@127.0.0.1:{nobody}/none",
        kafka_bootstrap=f"127.0.0.1:{free_port()}",
        extend_api_key="key",
        **{f"{name}_listen": f"127.0.0.1:{port}"},
    )
    running = asyncio.create_task(service._main(settings, asyncio.Event()))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

            async def listens() -> bool:
                try:
                    return (await http.get("/healthz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(listens, f"{name} listens", 5)

            async def names_the_database() -> bool:
                found = (await http.get("/readyz")).json()
                return "database" in found["missing"] and found["waiting"]["database"] != "starting"

            if name != "submission":
                await eventually(names_the_database, "readyz says why", 10)
            assert "database" in (await http.get("/readyz")).json()["missing"]
            answer = await http.get("/v1/anything")
            assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=5)
