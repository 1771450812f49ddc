"""Measure the whole job: ``everyrun demo --inputs 2500 --faults none --run-seconds 0``, from ready to reconciled."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.servers import Servers


async def run(servers: Servers) -> list[tuple[str, ...]]:
    seconds = []
    for _ in range(3):
        figures = servers.folder / "demo.json"
        arguments = ["demo", "--inputs", "2500", "--faults", "none", "--run-seconds", "0", "--json", str(figures)]
        code = f"from everyrun.cli.app import app; app({arguments!r})"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        assert await child.wait() == 0
        seconds.append(json.loads(figures.read_text())["seconds"])
    return [("demo, 2,500 inputs", f"{sorted(seconds)[1]:.1f} s", "", "", "15 s")]
