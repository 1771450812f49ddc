"""A frozen part accepts connections and never answers. Services that need it notice this soon; others do not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from everyrun.doctor.examine import examine
from everyrun.doctor.judge_progress import FOLLOWING
from everyrun.log import events
from everyrun.log.producer import Producer
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.services import ServiceProcess
from tests.integration.test_producer import broker
from tests.records import an_input, batch_event

pytestmark = pytest.mark.stack

TOKEN = "a-token-of-this-test"
#: A look every 4 to 5 s that takes 5 to 6 s at most, and some for a busy machine.
FOUND_OUT_WITHIN = 15.0


def processes_of(folder: Path) -> list[int]:
    """The postmaster of a data folder and its children."""
    master = int(next(folder.rglob("postmaster.pid")).read_text().split()[0])
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == master:
                children.append(int(number))
    return [master, *children]


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def readyz(one: ServiceProcess) -> tuple[int, dict[str, Any]]:
    try:
        async with httpx.AsyncClient(timeout=5) as http:
            answer = await http.get(one.url + "/readyz")
    except httpx.TransportError:
        return 0, {}
    return answer.status_code, answer.json()


async def all_say(services: dict[str, ServiceProcess], expected: dict[str, int], part: str | None) -> float:
    """Wait until each answers so, and names the part if one is given; how many seconds it took."""
    began = time.monotonic()

    async def so() -> bool:
        answers = await asyncio.gather(*(readyz(services[name]) for name in expected))
        named = all(part in body.get("waiting", {}) for _, body in answers if part is not None)
        return [status for status, _ in answers] == list(expected.values()) and named

    await eventually(so, f"{expected}, for {part}", 120)
    return time.monotonic() - began


async def the_doctor_sees_who_stands_still(settings: Settings, running: dict[str, ServiceProcess]) -> None:
    urls = {f"{name}_url": running[name].url for name in ("submission", "query", "reconciler", "replay", "notifier")}
    where = settings.model_copy(update={**urls, "processor_urls": [running["processor"].url]})

    async def levels() -> dict[str, str]:
        return {finding.check: finding.level for finding in await examine(where, None, polling_only=True)}

    services = ("submission", "query", "processor", "reconciler", "replay", "notifier", FOLLOWING)

    async def all_is_well() -> bool:
        found = await levels()
        return {name: found[name] for name in services} == dict.fromkeys(services, "ok")

    await eventually(all_is_well, "the doctor finds nothing wrong", 60)
    with frozen(running["processor"].process.pid, running["reconciler"].process.pid):
        # Something that the tables do not have yet.
        async with Producer(settings) as producer:
            await producer.append(
                [batch_event(events.BatchRequested, "sub_1", "sub_1.c00001", 1, 0, inputs=[an_input("sub_1", 1)])]
            )
        found = await levels()
        stopped = ("processor", "reconciler", FOLLOWING)
        assert {name: found[name] for name in services} == {
            **dict.fromkeys(services, "ok"),
            **dict.fromkeys(stopped, "failed"),
        }


async def test_ready_is_who_can_do_what_callers_ask(
    servers: Any, settings: Settings, service: Callable[..., ServiceProcess]
) -> None:
    names = ("bridge", "submission", "query", "reconciler", "replay", "processor", "notifier")
    env = {
        "EVERYRUN_API_TOKEN": TOKEN,
        "EXTEND_API_KEY": "sk_none",
        "EVERYRUN_EXTEND_BASE_URL": "http://127.0.0.1:1",
        "EVERYRUN_WEBHOOK_SECRETS": "wss_some",
    }
    running = {name: service(name, **env) for name in names}
    everyone = dict.fromkeys(names, 200)
    await all_say(running, everyone, None)

    with frozen(broker(servers[0])):
        need_it = dict.fromkeys(("bridge", "reconciler", "replay", "processor"), 503)
        assert await all_say(running, need_it, "kafka") < FOUND_OUT_WITHIN
        await all_say(running, {"submission": 200, "notifier": 200}, "kafka")
        await all_say(running, {"query": 200}, None)
        # And it takes inputs in: they wait for Kafka, not the caller.
        async with httpx.AsyncClient(timeout=10, headers={"authorization": f"Bearer {TOKEN}"}) as http:
            row = {"id": "one", "file": {"url": "https://files.example.com/1.pdf"}}
            url = f"{running['submission'].url}/v1/submissions"
            answer = await http.post(url, params={"workflow_id": "workflow_1"}, json={"inputs": [row]})
        assert answer.status_code == 202, answer.text
    await all_say(running, everyone, None)

    await the_doctor_sees_who_stands_still(settings, running)

    with frozen(*processes_of(servers[1]._folder)):
        need_it = dict.fromkeys(("submission", "query", "reconciler", "replay", "processor", "notifier"), 503)
        assert await all_say(running, need_it, None) < FOUND_OUT_WITHIN
        await all_say(running, {"bridge": 200}, None)
    await all_say(running, everyone, None)
