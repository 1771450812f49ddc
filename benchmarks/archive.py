"""Measure archiving, verifying and indexing the log against getmany alone, and the history of one input."""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import asyncpg
import httpx

from benchmarks import world
from benchmarks.servers import TOKEN, Servers, row
from everyrun.log.producer import Producer
from everyrun.log.reading import bounds, read_ranges
from everyrun.log.topics import cluster_id
from everyrun.replay.archive.verify import verify
from everyrun.replay.archive.writer import archive
from everyrun.replay.history.event_index import EventIndex, catch_up

#: Number of runs. The target for history is about a million; EVENTS=1000000 takes some minutes.
_EVENTS = int(os.environ.get("EVENTS", "200000"))
_INPUTS = 1000
_QUERIES = 40


async def _write(servers: Servers) -> None:
    async with Producer(servers.settings, linger_ms=5) as producer:
        part = []
        batches = _EVENTS // _INPUTS
        for records in (world.batches(batches, _INPUTS), world.runs(_EVENTS, _INPUTS, 600)):
            for record in records:
                part.append(record)
                if len(part) == 500:
                    await producer.append(part)
                    part = []
        await producer.append(part)


async def _getmany(servers: Servers) -> float:
    limits = await bounds(servers.settings, ("batches", "runs"))
    began, count = time.monotonic(), 0
    async for stretch in read_ranges(servers.settings, {p: (0, end) for p, end in limits.end.items()}):
        count += len(stretch.records)
    return count / (time.monotonic() - began)


async def run(servers: Servers) -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    await _write(servers)
    alone = max(await _getmany(servers), await _getmany(servers))
    found = []
    with tempfile.TemporaryDirectory(prefix="everyrun-bench-") as folder:
        began = time.monotonic()
        done = await archive(servers.settings, folder)
        found.append(row("archive", done.records / (time.monotonic() - began), alone, "records/s", "0.5 of getmany"))
        began = time.monotonic()
        verified = await verify(folder)
        assert not verified.findings
        found.append(row("archive verify", verified.records / (time.monotonic() - began), alone, "records/s", "-"))
    count, seconds = await indexed(servers)
    found.append(row("history index", count / seconds, alone, "records/s", "-"))
    found.append(await history(servers, _EVENTS))
    return found


async def indexed(servers: Servers) -> tuple[int, float]:
    """Index the whole log; return the number of records, and the seconds that it took."""
    async with asyncpg.create_pool(servers.dsn, min_size=1, max_size=3) as pool:
        began = time.monotonic()
        count = await catch_up(servers.settings, EventIndex(pool, await cluster_id(servers.settings)))
        seconds = time.monotonic() - began
        await pool.execute("analyze everyrun_index.places")
    return count, seconds


async def history(servers: Servers, inputs: int) -> tuple[str, ...]:
    """Measure how long the replay service takes to answer the history of one of ``inputs`` inputs."""
    replay = await servers.start("replay")
    times = []
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=replay, headers=headers, timeout=60) as http:
        for n in range(_QUERIES):
            began = time.monotonic()
            answer = await http.get(f"/v1/history/{world.SUBMISSION}:invoice-{n * (inputs // _QUERIES):07d}")
            times.append(time.monotonic() - began)
            assert len(answer.json()["events"]) >= 2, answer.text
    servers.stop("replay")
    name = f"history of one input in {inputs:,}, over HTTP, median of {_QUERIES}"
    # The first call after the start of the service also opens its connections.
    slow = f"first {times[0] * 1000:.0f} ms, slowest of the others {max(times[1:]) * 1000:.0f} ms"
    return name, f"{statistics.median(times) * 1000:.1f} ms", slow, "", "under 100 ms"
