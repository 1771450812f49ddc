"""Playing one cell on a stage: a job, what is done to it meanwhile, and the judgement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaos import jobs
from chaos.cells import INPUTS, WITHIN, Cell
from chaos.outcomes import Outcome
from chaos.stage import Stage
from chaos.strikes import all_ready, strike_all
from chaos.witness import Witness
from everyrun.cli.job import JobError

#: A failpoint's job is small, as many are played; each chunk is a call.
POINT_INPUTS = 600

Tell = Callable[[str], None]


def machine() -> str:
    """Where it was run."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


async def play(
    stage: Stage, cell: Cell, seed: int, tell: Tell, inputs: int = INPUTS, within: float = WITHIN
) -> Outcome:
    """What came of the cell. The stage is whole again afterwards, or the outcome says why not."""
    count = min(inputs, POINT_INPUTS) if cell.point else inputs
    await all_ready(stage.stack)
    await stage.faults(cell.faults)
    witness = await Witness.now(stage.endpoints["kafka_bootstrap"])
    skip = await stage.runs()
    deaths, began = stage.deaths(), time.monotonic()
    deadline = began + within
    if cell.point:
        stage.arm(cell.point)
    report: dict[str, Any] = {"settled": 0, "expected": count}
    doubles = duplicates = 0
    problems: list[str] = []
    striking = None
    try:
        async with asyncio.timeout(within + 60):
            submission_id = await jobs.hand_in(stage.http, stage.endpoints, count)
            striking = asyncio.create_task(strike_all(stage.stack, cell.strikes(seed)))
            await jobs.settled(stage.http, stage.endpoints, submission_id, deadline, lambda r: tell(progress_of(r)))
            await striking
            judged = await jobs.judged(stage.http, stage.endpoints, submission_id, witness, deadline, skip)
            report, problems = judged.report, judged.problems
            doubles, duplicates = judged.comparison.double_batches, judged.comparison.duplicates
    except (JobError, TimeoutError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    finally:
        if striking is not None:
            striking.cancel()
            await asyncio.gather(striking, return_exceptions=True)
    if cell.point and not stage.has_struck(cell.point):
        problems.append("the job never came to this point")
        stage.disarm()
    return outcome(cell, seed, began, problems, report, duplicates, doubles, deaths=stage.deaths() - deaths)


def outcome(
    cell: Cell,
    seed: int,
    began: float,
    problems: list[str],
    report: Mapping[str, Any],
    duplicates: int = 0,
    double_batches: int = 0,
    *,
    deaths: int,
    what: str = "",
) -> Outcome:
    """Return the outcome of a cell that began at a time (monotonic) and has just ended."""
    return Outcome(
        cell=cell.name,
        seed=seed,
        what=f"{cell.what}; {what}" if what else cell.what,
        seconds=time.monotonic() - began,
        expected=report["expected"],
        settled=report["settled"],
        duplicates=duplicates,
        double_batches=double_batches,
        deaths=deaths,
        problems=problems,
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
    )


def progress_of(report: Mapping[str, Any]) -> str:
    """How far a job is, as a line."""
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(report["by_status"].items()))
    return f"{report['settled']} of {report['expected']} settled ({statuses})"
