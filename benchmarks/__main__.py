"""Run the named benchmarks, or all, each on a new Kafka and Postgres; print a table of figures and ratios."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import sys
import tempfile
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import archive, bridge, demo, dropin, export, idle, intake, notify, processor, replay, retry, startup
from benchmarks.servers import Servers

ALL = {
    "intake": intake.run,
    "bridge": bridge.run,
    "processor": processor.run,
    "idle": idle.run,
    "archive": archive.run,
    "replay": replay.run,
    "notify": notify.run,
    "export": export.run,
    "retry": retry.run,
    "dropin": dropin.run,
    "demo": demo.run,
}


async def _rows(name: str) -> list[tuple[str, ...]]:
    if name == "startup":
        return await startup.run()
    with tempfile.TemporaryDirectory(prefix="everyrun-bench-", ignore_cleanup_errors=True) as folder:
        async with Servers(Path(folder)) as servers:
            return await ALL[name](servers)


async def main(names: list[str]) -> None:
    out = Console()
    machine = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    out.print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    table = Table("benchmark", "figure", "ceiling", "ratio", "target", title="python -m benchmarks " + " ".join(names))
    for name in names:
        for row in await _rows(name):
            out.print(row)
            table.add_row(*row)
    out.print(table)
    left = psutil.Process().children(recursive=True)
    assert not left, left


if __name__ == "__main__":
    # The servers are polled until they are up; do not log each refused connection.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    asyncio.run(main(sys.argv[1:] or ["startup", *ALL]))
