"""After the cells of a stage: are the tables, with live services, what the log they made says?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from chaos import jobs
from chaos.cells import Cell
from chaos.commands import everyrun, unclear
from chaos.outcomes import AUDIT, Outcome
from chaos.play import machine
from chaos.stage import Stage

_WITHIN = 300.0
#: Inputs of the job that goes on while rebuilt tables take the place of the live ones.
_INPUTS = 1000


async def audited(stage: Stage, cells: Sequence[Cell], seed: int) -> Outcome:
    """What ``everyrun audit`` says: it makes all tables anew from the log, and compares row by row at equal offsets.

    Then ``everyrun rebuild --swap`` puts tables made of that log live, in the middle of another job, and the audit is
    asked again once the job has settled.
    """
    began = time.monotonic()
    await stage.faults("none")
    first = await _everyrun(stage, "audit", "--format", "jsonl")
    submission_id = await jobs.hand_in(stage.http, stage.endpoints, _INPUTS)
    swapped = await _everyrun(stage, "rebuild", "--swap", "--fresh")
    where = stage.http, stage.endpoints, submission_id
    report = await jobs.settled(*where, time.monotonic() + _WITHIN)
    second = await _everyrun(stage, "audit", "--format", "jsonl")
    problems = [problem for answer in (first, swapped, second) for problem in answer.problems]
    if report["open"]:
        problems.append(f"{report['open']} inputs of the job during the swap are open")
    return Outcome(
        cell=f"{AUDIT}{cells[0].name}",
        seed=seed,
        what=f"{', '.join(cell.name for cell in cells)}: {first.last} {swapped.last} {second.last}",
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


class _Answer(NamedTuple):
    last: str
    problems: list[str]


async def _everyrun(stage: Stage, *command: str) -> _Answer:
    """The last line that a command says, and what is wrong with it."""
    ended = await everyrun(stage, *command)
    if ended.code == 0:
        return _Answer(ended.last, [])
    problems = unclear(command[0], ended, ()) + ended.out.splitlines()[:3]
    return _Answer(ended.last, problems)
