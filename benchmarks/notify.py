"""Measure notifications to four receivers, one of them dead, against a client that only posts the same bodies.

The figure counts what the three live receivers accept, from the first record in the log to the last answer. The ceiling
is the same HTTP client with the same number of requests at a time, without the log, the database and the signatures.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator

import aiohttp
import httpx
import msgspec
import psutil

from benchmarks import world
from benchmarks.processor import _write
from benchmarks.servers import TOKEN, Servers, row, until
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import RunObserved

_EVENTS, _INPUTS, _BYTES, _AT_ONCE = 4000, 1000, 2000, 8


async def run(servers: Servers) -> list[tuple[str, ...]]:
    dead, *live = [servers.port() for _ in range(4)]
    servers.spawn("sink", ["-m", "benchmarks.sink", str(dead), *map(str, live)], {})
    urls = [f"http://127.0.0.1:{port}/hook" for port in live]
    await until(lambda: _listens(live[0]), 30)
    ceiling = await _ceiling(urls)
    notifier = await servers.start("notifier", EVERYRUN_NOTIFY_PRIVATE="true")
    for url in urls:
        await _add(notifier, url)
    numbers = itertools.count()
    # The consumer group is formed, and connections are opened, before the measurement.
    await _measure(servers, live[0], numbers, 200)
    alone = await _measure(servers, live[0], numbers, _EVENTS)
    await _add(notifier, f"http://127.0.0.1:{dead}/hook")
    process = psutil.Process(servers.children["notifier"].pid)
    before = sum(process.cpu_times()[:2])
    figure = await _measure(servers, live[0], numbers, _EVENTS)
    seconds = (sum(process.cpu_times()[:2]) - before) / (3 * _EVENTS / 1000)
    return [
        row("notifications to 3 receivers and a dead one", figure, ceiling, "notifications/s", "1,000/s"),
        row("the same, against no dead receiver", figure, alone, "notifications/s", "0.9"),
        ("CPU time for 1,000 notifications", f"{seconds:.2f} s", "", "", "1 s"),
    ]


async def _listens(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        await _count(port)
        return True
    return False


async def _count(port: int) -> int:
    async with httpx.AsyncClient() as http:
        return int((await http.get(f"http://127.0.0.1:{port}/count")).text)


async def _add(notifier: str, url: str) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}) as http:
        body = {"url": url, "events": ["workflow_run.*"]}
        answer = await http.post(f"{notifier}/v1/receivers", json=body, timeout=30)
        assert answer.status_code == 201, answer.text


async def _measure(servers: Servers, port: int, numbers: Iterator[int], count: int) -> float:
    """Return how many notifications the three live receivers accept in a second, for ``count`` events."""
    before = await _count(port)
    runs = [_record(number) for number in itertools.islice(numbers, count)]
    began = time.monotonic()
    await _write(servers, runs)

    async def all_accepted() -> bool:
        return await _count(port) - before >= 3 * count

    await until(all_accepted, 300)
    return 3 * count / (time.monotonic() - began)


def _record(number: int) -> Record:
    event = RunObserved("webhook", msgspec.Raw(world.run(number, _INPUTS, _BYTES)), "workflow_run.completed")
    about = {"id": f"event_{number}", "source": "/bench", "time": timestamp(time.time())}
    return record("runs", event, key=f"batch_{number % 40}", **about)


async def _ceiling(urls: list[str]) -> float:
    bodies = [world.run(number, _INPUTS, _BYTES) for number in range(_EVENTS)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(url: str, part: list[bytes]) -> None:
            for body in part:
                async with session.post(url, data=body) as answer:
                    await answer.read()

        began = time.monotonic()
        await asyncio.gather(*(post(url, bodies[start::_AT_ONCE]) for url in urls for start in range(_AT_ONCE)))
        return 3 * _EVENTS / (time.monotonic() - began)
