"""After the cells of a stage: are the tables, with live services, what the log they made says?"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from chaos.cells import Cell
from chaos.outcomes import AUDIT, Outcome
from chaos.play import machine
from chaos.stage import Stage

_COMMAND = (sys.executable, "-c", "from everyrun.cli.app import main; main()", "audit", "--format", "jsonl")
_WITHIN = 300.0


async def audited(stage: Stage, cells: Sequence[Cell], seed: int) -> Outcome:
    """What ``everyrun audit`` says: it makes all tables anew from the log, and compares row by row at equal offsets."""
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        *_COMMAND,
        env={**os.environ, "EVERYRUN_DATA_DIR": str(stage.stack.data_dir), "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_WITHIN):
            found, said = (text.decode("utf-8", "replace") for text in await child.communicate())
    except TimeoutError:
        child.kill()
        await child.wait()
        found, said = "", f"not done within {_WITHIN:.0f} s"
    last = said.strip().rpartition("\n")[2].strip()
    problems = [] if child.returncode == 0 else [f"exit code {child.returncode}", last, *found.splitlines()[:3]]
    return Outcome(
        cell=f"{AUDIT}{cells[0].name}",
        seed=seed,
        what=f"{', '.join(cell.name for cell in cells)}: {last}",
        seconds=time.monotonic() - began,
        expected=0,
        settled=0,
        duplicates=0,
        double_batches=0,
        deaths=0,
        problems=problems,
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
    )
