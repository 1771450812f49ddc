"""Measure the time from webhook to row on an idle stack, at 100 webhooks a second."""

from __future__ import annotations

import asyncio
import time

import httpx

from benchmarks import world
from benchmarks.processor import _write
from benchmarks.servers import SECRET, Servers, until
from everyrun.extend.signature import sign

_INPUTS, _A_SECOND, _SECONDS = 1000, 100, 10


async def run(servers: Servers) -> list[tuple[str, ...]]:
    bridge = await servers.start("bridge")
    await servers.start("processor")
    await _write(servers, world.batches(1, _INPUTS))
    connection = await servers.connect()

    async def submitted() -> bool:
        return await connection.fetchval("select count(*) from everyrun.results") == _INPUTS

    await until(submitted, 60)
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}

    async def look() -> None:
        while len(seen) < _A_SECOND * _SECONDS:
            rows = await connection.fetch("select input_id from everyrun.results where run_id is not null")
            now = time.monotonic()
            for found in rows:
                seen.setdefault(found["input_id"], now)
            await asyncio.sleep(0.005)

    looking = asyncio.create_task(look())
    async with httpx.AsyncClient() as http:
        began = time.monotonic()
        posts = []
        for number in range(_A_SECOND * _SECONDS):
            await asyncio.sleep(max(0.0, began + number / _A_SECOND - time.monotonic()))
            posts.append(asyncio.create_task(_post(http, bridge, number)))
            sent[f"{world.SUBMISSION}:invoice-{number:07d}"] = time.monotonic()
        await asyncio.gather(*posts)
    await asyncio.wait_for(looking, 30)
    times = sorted(seen[i] - at for i, at in sent.items())
    await connection.close()
    p50, p99 = times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000
    return [("webhook to row at 100/s, p50 / p99", f"{p50:.0f} / {p99:.0f} ms", "", "", "p99 under 200 ms")]


async def _post(http: httpx.AsyncClient, url: str, number: int) -> None:
    run = world.run(number, _INPUTS, 2000)
    body = b'{"eventId":"event_%d","eventType":"workflow_run.completed","payload":%s}' % (number, run)
    stamp = str(int(time.time()))
    headers = {
        "x-extend-request-timestamp": stamp,
        "x-extend-request-signature": sign(stamp.encode(), body, SECRET.encode()).decode(),
    }
    answer = await http.post(url + "/webhooks/extend", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
