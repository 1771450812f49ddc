"""The notifier's answers match its OpenAPI document; ``answers_fit`` of the conftest compares each one."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from everyrun.log.producer import Producer
from everyrun.notifier.api import notifier_api
from everyrun.notifier.changes import publish_changes
from everyrun.notifier.metrics import Metrics
from everyrun.notifier.planner import Planner
from everyrun.notifier.sender import Sender, clean_up
from everyrun.notifier.transport import Transport
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from tests.conftest import eventually
from tests.integration.conftest import CHECKED, read_topic
from tests.integration.receivers import TOKEN, ReceiverServer, a_run, listening, webhook

pytestmark = pytest.mark.stack


async def test_every_route_answers_as_documented(settings: Settings) -> None:
    own = settings.model_copy(update={"api_token": SecretStr(TOKEN), "notify_private": True, "notify_kept": 0.001})
    metrics, server = Metrics(), ReceiverServer()
    async with await open_pool(own, name="test") as pool, Transport(own) as transport, listening(server):
        sender = Sender(own, pool, transport, metrics)
        app = notifier_api(own, pool, transport, sender.wake.set)
        headers = {"authorization": f"Bearer {TOKEN}"}
        here = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://notifier", headers=headers)
        works = [
            asyncio.create_task(sender.run()),
            asyncio.create_task(Planner(own, pool, sender.wake).run(lambda: None)),
        ]
        async with here as http:

            async def call(method: str, path: str = "", expect: int = 200, **more: Any) -> Any:
                answer = await http.request(method, f"/v1/receivers{path}", **more)
                assert answer.status_code == expect, answer.text
                return answer.json()

            assert await call("GET") == {"receivers": []}
            new = {"url": f"{server.url}?key=secret", "events": ["workflow_run.*"], "workflows": ["workflow_a"]}
            added = await call("POST", expect=201, json=new)
            path = f"/{added['receiver']['receiver_id']}"
            server.secret = added["secret"]
            async with Producer(own) as producer:
                await producer.append([webhook(a_run(number)) for number in range(5)])
                # Of another workflow.
                await producer.append([webhook(a_run(9, workflow={"id": "workflow_b"}))])

            async def all_delivered() -> bool:
                return bool((await call("GET", path))["delivered"] == 5)

            await eventually(all_delivered, "all are delivered", 60)
            assert set(server.subjects()) == {f"run_{number}" for number in range(5)}
            shown = await call("GET", path)
            assert shown["url"] == f"{server.url}?[hidden]"
            first = await call("GET", f"{path}/deliveries", params={"limit": 3})
            second = await call("GET", f"{path}/deliveries", params={"limit": 3, "cursor": first["next_cursor"]})
            assert (len(first["deliveries"]), len(second["deliveries"]), second["next_cursor"]) == (3, 2, None)
            ids = [row["notification_id"] for row in (*first["deliveries"], *second["deliveries"])]
            assert len(set(ids)) == 5
            (one,) = first["deliveries"][0]["tries"]
            assert (one["status"], one["answer"], one["error"]) == (200, "said the receiver", "")
            await call("POST", f"{path}/resend", expect=202, json={"notification_ids": [ids[0], "ntf_none"]})
            await call("POST", f"{path}/pause")
            await call("POST", f"{path}/resume")
            assert (await call("POST", f"{path}/test"))["accepted"]
            await call("POST", f"{path}/rotate", json={})
            await call("GET", "/rcv_none", expect=404)
            await call("GET", f"{path}/deliveries", expect=422, params={"event": "a\x00b"})
            await eventually(all_delivered, "the resent one is delivered", 60)
            await metrics.update(pool)
            await clean_up(own, pool, metrics)
            assert await call("GET", f"{path}/deliveries") == {"deliveries": [], "next_cursor": None}
            await call("DELETE", path, params={"by": "sam"})
            await publish_changes(own, pool)
            assert await pool.fetchval("select count(*) from everyrun_queue.receiver_changes") == 0
        for work in works:
            work.cancel()
        await asyncio.wait(works)
    found = sorted((event for event, _ in await read_topic(own, "batches")), key=lambda event: event["changed_at"])
    assert [event["change"] for event in found] == ["added", "paused", "resumed", "secret-rotated", "removed"]
    assert {event["url"] for event in found} == {f"{server.url}?[hidden]"}
    assert [event["by"] for event in found] == [*["bootstrap"] * 4, "sam (bootstrap)"]
    assert server.secret not in str(found)
    checked = {(method, route) for method, route, status in CHECKED["Everyrun notifier"] if status < 300}
    documented = {(method.upper(), route) for route, calls in app.openapi()["paths"].items() for method in calls}
    assert checked == documented
