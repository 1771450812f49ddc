from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from fastapi import FastAPI

from everyrun.log.connection import connection
from everyrun.settings import Settings
from tests import answers
from tests.contract.conftest import EmulatorProcess
from tests.integration.services import ServiceProcess


@pytest.fixture
def service(tmp_path: Path, settings: Settings) -> Iterator[Callable[..., ServiceProcess]]:
    """Start a service of the test's own topics and database; all are killed at the end."""
    started: list[ServiceProcess] = []

    def start(name: str, **variables: object) -> ServiceProcess:
        started.append(ServiceProcess(name, tmp_path, settings, **variables))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def emulator_with(tmp_path: Path) -> Iterator[Callable[..., EmulatorProcess]]:
    """Start emulators with the options given."""
    started: list[EmulatorProcess] = []

    def start(*options: str) -> EmulatorProcess:
        folder = tmp_path / f"emulator{len(started)}" / "state"
        folder.mkdir(parents=True)
        started.append(EmulatorProcess(folder, *options))
        return started[-1]

    yield start
    for emulator in started:
        emulator.kill()


async def read_topic(settings: Settings, name: str) -> list[tuple[Any, dict[str, str]]]:
    """Every record of a topic: the decoded event, and its headers; partition by partition."""
    consumer = AIOKafkaConsumer(auto_offset_reset="earliest", **connection(settings))
    await consumer.start()
    try:
        parts = [TopicPartition(settings.topic(name), part) for part in range(8 if name != "quarantine" else 1)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        found = []
        async with asyncio.timeout(20):
            while sum([await consumer.position(part) for part in parts]) < sum(ends.values()):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for r in records:
                        headers = {key: value.decode() for key, value in r.headers}
                        found.append((msgspec.json.decode(r.value), headers | {"key": r.key.decode()}))
        return found
    finally:
        await consumer.stop()


#: (method, path, status) of every answer that was held against its document, by the title of the API.
CHECKED: dict[str, set[tuple[str, str, int]]] = {}


@pytest.fixture(autouse=True)
def answers_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every answer of an API that runs in a test's own process against its OpenAPI document."""
    send = httpx.ASGITransport.handle_async_request

    async def checked(self: httpx.ASGITransport, request: httpx.Request) -> httpx.Response:
        response = await send(self, request)
        app = self.app
        if isinstance(app, FastAPI):
            content = await response.aread()
            path = answers.check(app, request, response.status_code, response.headers, content)
            if path is not None:
                CHECKED.setdefault(app.title, set()).add((request.method, path, response.status_code))
        return response

    monkeypatch.setattr(httpx.ASGITransport, "handle_async_request", checked)
