"""Audit the log of a stage after its cells: the live tables must agree with it, before and after a swap."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from chaos import jobs, outcomes
from chaos.cells import Cell
from chaos.commands import everyrun, problems_of_end
from chaos.outcomes import AUDIT, Outcome
from chaos.stage import Stage

_WITHIN = 300.0
#: Inputs of the job that runs while rebuilt tables replace the live ones.
_INPUTS = 1000


async def audit(stage: Stage, cells: Sequence[Cell], seed: int) -> Outcome:
    """Run ``everyrun audit``, ``everyrun rebuild --swap`` in the middle of another job, and the audit again.

    The audit rebuilds all tables from the log and compares them row by row at equal offsets.
    """
    began = time.monotonic()
    await stage.faults("none")
    first = await _everyrun(stage, "audit", "--format", "jsonl")
    submission_id = await jobs.submit(stage.http, stage.endpoints, _INPUTS)
    swapped = await _everyrun(stage, "rebuild", "--swap", "--fresh")
    where = stage.http, stage.endpoints, submission_id
    report = await jobs.settle(*where, time.monotonic() + _WITHIN)
    second = await _everyrun(stage, "audit", "--format", "jsonl")
    problems = [problem for answer in (first, swapped, second) for problem in answer.problems]
    if report["open"]:
        problems.append(f"{report['open']} inputs of the job that ran during the swap are open")
    return outcomes.ended(
        f"{AUDIT}{cells[0].name}",
        seed,
        f"{', '.join(cell.name for cell in cells)}: {first.last} {swapped.last} {second.last}",
        began,
        problems,
    )


class _CommandResult(NamedTuple):
    last: str
    problems: list[str]


async def _everyrun(stage: Stage, *command: str) -> _CommandResult:
    """Run a command; return its last line, and what is wrong with how it ended."""
    ended = await everyrun(stage, *command)
    if ended.code == 0:
        return _CommandResult(ended.last, [])
    problems = problems_of_end(command[0], ended, ()) + ended.out.splitlines()[:3]
    return _CommandResult(ended.last, problems)
