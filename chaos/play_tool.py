"""Play a cell that runs rebuild, audit, as-of or archive beside jobs, and kills the tool, Kafka and Postgres under it.

Every run must end with the right outcome or with a clear error. On the quiet stack the tool must then agree with the
truth (see :mod:`chaos.tools_under_test`).
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from chaos import jobs
from chaos.background import meanwhile
from chaos.cells import INPUTS, TOOL, WITHIN, Cell, ToolStrike
from chaos.commands import Ended, RunningCommand, everyrun, problems_of_end
from chaos.outcomes import Outcome
from chaos.stage import Stage
from chaos.strikes import all_ready, strike
from chaos.tools_under_test import TOOLS, ToolUnderTest
from chaos.trial import ShowProgress, Trial, progress_of
from everyrun.cli.job import JobError
from everyrun.store.pool import POSTGRES_AWAY

#: Jobs after the first have this part of its inputs: they only have to run beside the tool.
_LATER_JOBS = 5
#: Maximum number of runs that may end before they are struck; each later one is struck sooner.
_TRIES = 4
#: Seconds within which all strikes are made and the jobs beside them end.
_STRUCK_WITHIN = 1200.0


async def play(
    stage: Stage, cell: Cell, seed: int, show: ShowProgress, inputs: int = INPUTS, within: float = WITHIN
) -> Outcome:
    """Play the cell: jobs run one after another beside the tool; each must end balanced and equal to the truth."""
    trial = await Trial.begin(stage, cell, seed, show)
    runs = 0
    with tempfile.TemporaryDirectory(prefix="everyrun-chaos-tool-") as folder:
        tool = TOOLS[cell.tool](stage, Path(folder))
        try:
            async with asyncio.timeout(_STRUCK_WITHIN), _jobs_beside(trial, inputs, within) as beside:
                found, runs = await _strike_tool(tool, cell.tool_strikes(seed), beside)
                trial.problems += found
            deadline = time.monotonic() + within
            for submission_id in beside.submission_ids:
                await trial.judge(submission_id, deadline)
            trial.problems += await tool.finish(beside.submission_ids)
        except (JobError, KafkaError, *POSTGRES_AWAY) as error:
            trial.fail(error)
    return trial.outcome(f"{runs} runs beside the jobs, then repeated on the quiet stack")


class _JobsBeside:
    """Jobs that are submitted one after another while the tool runs."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.submission_ids: list[str] = []
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self, inputs: int) -> None:
        """Submit jobs until ``over`` is set, each as soon as the one before it has no open input."""
        count = inputs
        stage = self._trial.stage
        try:
            while not self.over.is_set():
                submission_id = await self._trial.submit(count)
                self.submission_ids.append(submission_id)
                # No deadline while parts are killed; the jobs are judged afterwards.
                await jobs.settle(stage.http, stage.endpoints, submission_id, float("inf"), self._note)
                count = max(inputs // _LATER_JOBS, 1)
        finally:
            # Also if a job could not be submitted, so that nothing waits for it.
            self.settled.set()
            self.ended.set()

    def _note(self, report: dict[str, Any]) -> None:
        if report["settled"]:
            self.settled.set()
        self._trial.show(f"job {len(self.submission_ids)} beside the tool: {progress_of(report)}")


@asynccontextmanager
async def _jobs_beside(trial: Trial, inputs: int, within: float) -> AsyncIterator[_JobsBeside]:
    """Run jobs during the block; the last one may take ``within`` seconds after it. Raises TimeoutError."""
    beside = _JobsBeside(trial)
    async with meanwhile(beside.run(inputs)):
        yield beside
        beside.over.set()
        async with asyncio.timeout(within):
            await beside.ended.wait()


async def _strike_tool(tool: ToolUnderTest, strikes: list[ToolStrike], beside: _JobsBeside) -> tuple[list[str], int]:
    """Apply every strike to every command of the tool. Return the problems, and the number of runs."""
    await beside.settled.wait()
    if not beside.submission_ids:
        return [], 0
    problems: list[str] = []
    runs = 0
    await tool.prepare(beside.submission_ids[-1])
    for number in range(len(tool.commands)):
        first, _ = tool.commands[number]
        measured, found = await tool.ends_well(*first)
        problems += found
        runs += 1
        for given in strikes:
            found, tries = await _strike_run(tool, number, given, measured.seconds, beside)
            problems += found
            runs += tries
    return problems, runs


async def _strike_run(
    tool: ToolUnderTest, number: int, given: ToolStrike, seconds: float, beside: _JobsBeside
) -> tuple[list[str], int]:
    """Start the tool, strike it or a part it needs, repeat it at once, and repeat it when every part is ready."""
    stage, problems = tool.stage, []
    for tries in range(_TRIES):
        await all_ready(stage.stack)
        await tool.prepare(beside.submission_ids[-1])
        struck, repeated = tool.commands[number]
        name = f"{struck[0]} with a strike at {given.part}"
        running = await RunningCommand.start(stage, *struck)
        try:
            if await running.ends_within(seconds * given.moment * 0.7**tries):
                # It ended before the strike: check its outcome, and strike the next run sooner.
                ended = await running.ended()
                problems += problems_of_end(struck[0], ended, ()) or tool.check(ended)
                continue
            if given.part == TOOL:
                running.kill()
            else:
                await strike(stage.stack, given.part, "kill")
            ended = await running.ended()
        finally:
            running.kill()
        if given.part != TOOL:
            problems += _problems_of_struck_run(tool, name, ended)
        # Once at once, when the part that was struck may still be starting; and once when all are ready.
        problems += _problems_of_struck_run(tool, f"{name}, repeated at once", await everyrun(stage, *repeated))
        await all_ready(stage.stack)
        _, found = await tool.ends_well(*repeated)
        return problems + found, tries + 3
    return [*problems, f"{struck[0]} ended {_TRIES} times before {given.part} could be struck"], _TRIES


def _problems_of_struck_run(tool: ToolUnderTest, name: str, ended: Ended) -> list[str]:
    """Return what is wrong with a run under a strike, which may end with the right outcome or with a clear error."""
    problems = problems_of_end(name, ended, tool.errors)
    return problems or (tool.check(ended) if ended.code == 0 else [])
