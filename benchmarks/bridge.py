"""Measure the bridge with webhooks of 2 KB on 64 connections, in turns with a bare handler."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.servers import Servers, ready, row, until

_SECONDS, _CONNECTIONS, _BYTES, _TURNS = 5, 64, 2048, 3


async def _load(url: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load", url, str(_SECONDS), str(_CONNECTIONS), str(_BYTES)]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    found: dict[str, float] = json.loads(output)
    return found


async def run(servers: Servers) -> list[tuple[str, ...]]:
    bridge = await servers.start("bridge")
    port = servers.port()
    env = {"EVERYRUN_KAFKA_BOOTSTRAP": servers.settings.kafka_bootstrap}
    servers.spawn("bare", ["-m", "benchmarks.bare", str(port)], env)
    bare = f"http://127.0.0.1:{port}"
    await until(lambda: ready(bare), 30)
    bridge_results, bare_results = [], []
    for _ in range(_TURNS):
        bare_results.append(await _load(bare + "/webhooks/extend"))
        bridge_results.append(await _load(bridge + "/webhooks/extend"))
    figure, ceiling = (sorted(x["rate"] for x in runs)[_TURNS // 2] for runs in (bridge_results, bare_results))
    p99, bare_p99 = (sorted(x["p99"] for x in runs)[_TURNS // 2] * 1000 for runs in (bridge_results, bare_results))
    return [
        row("bridge, 2 KB, 64 connections", figure, ceiling, "webhooks/s", "0.8 of a bare handler"),
        ("bridge, p99", f"{p99:.0f} ms", f"{bare_p99:.0f} ms", f"{p99 / bare_p99:.2f}", ""),
    ]
