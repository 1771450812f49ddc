"""Receivers of notifications, as servers in the test's own process, and what a test does with the notifier."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from extend_ai.wrapper.webhooks import Webhooks

from everyrun.log.cloudevents import Record
from everyrun.log.observation import interpret, observed, read_head
from everyrun.serve import http_server, respond
from tests.conftest import free_port

TOKEN = "a-token-of-this-test"
TIME = "2026-03-01T10:00:00.000Z"


def a_run(number: int, status: str = "PROCESSED", **more: Any) -> dict[str, Any]:
    head = {"object": "workflow_run", "id": f"run_{number}", "status": status, "batchId": "batch_1"}
    times = {"startTime": "2026-03-01T09:00:00.000Z", "endTime": "2026-03-01T09:30:00.000Z"}
    return {**head, "metadata": {"n": number}, "workflow": {"id": "workflow_a"}, **times, **more}


def webhook(run: dict[str, Any], event: str = "workflow_run.completed") -> Record:
    body = {"eventId": f"event_{run['id']}_{event}", "eventType": event, "payload": run}
    record = interpret(json.dumps(body).encode(), [], TIME).record
    assert record is not None
    return record


def poll(run: dict[str, Any]) -> Record:
    content = json.dumps(run).encode()
    about: dict[str, Any] = {"source": "poll", "id": f"poll-{run['id']}", "time": TIME, "service": "/test"}
    return observed(content, read_head(content), **about)


class ReceiverServer:
    """A receiver. It verifies each request with Extend's SDK, and answers what the test says."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.secret = ""
        self.status = 200
        #: Set to make requests wait for their answer.
        self.held = asyncio.Event()
        self.held.set()
        self.events: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.requests = 0
        self.open = self.most_open = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            body = (await receive())["body"].decode()
            await self.held.wait()
            verified = not self.secret.startswith("wss_") or Webhooks().verify(body, headers, self.secret)
            status = self.status if verified else 401
            if 200 <= status < 300:
                self.events.append(json.loads(body))
                self.headers.append(headers)
            await respond(send, status, b"said the receiver")
        finally:
            self.open -= 1

    def subjects(self) -> Counter[str]:
        """Return how many times the event of each run was accepted."""
        return Counter(event["payload"]["id"] for event in self.events)


@asynccontextmanager
async def listening(*receivers: ReceiverServer) -> AsyncIterator[None]:
    """Run receivers."""
    if not receivers:
        yield
        return
    first, *others = receivers
    async with http_server(f"127.0.0.1:{first.port}", first, drain=0), listening(*others):
        yield
        for one in receivers:
            one.held.set()


class Notifier:
    """The API of a notifier at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def call(self, method: str, path: str = "", *, expect: int = 200, **more: Any) -> Any:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as http:
            answer = await http.request(method, f"{self.url}/v1/receivers{path}", **more)
        assert answer.status_code == expect, answer.text
        return answer.json()

    async def add(self, server: ReceiverServer, events: Sequence[str] = ("workflow_run.*",), **more: Any) -> str:
        body = {"url": server.url, "events": list(events), **more}
        added = await self.call("POST", expect=201, json=body)
        server.secret = added["secret"]
        return str(added["receiver"]["receiver_id"])

    async def deliveries(self, receiver_id: str, **query: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        cursor = None
        while True:
            params = {**query, **({"cursor": cursor} if cursor else {})}
            page = await self.call("GET", f"/{receiver_id}/deliveries", params=params)
            rows += page["deliveries"]
            cursor = page["next_cursor"]
            if cursor is None:
                return rows
