"""Play a cell with one job while one part is struck, a failpoint kills its process, or Extend misbehaves."""

from __future__ import annotations

import asyncio
import time

from chaos.cells import INPUTS, WITHIN, Cell
from chaos.outcomes import Outcome
from chaos.stage import Stage
from chaos.strikes import strike_all
from chaos.trial import ShowProgress, Trial
from everyrun.cli.job import JobError

#: Many failpoints are played, so the job of each is small; each chunk is one call.
POINT_INPUTS = 600


async def play(
    stage: Stage, cell: Cell, seed: int, show: ShowProgress, inputs: int = INPUTS, within: float = WITHIN
) -> Outcome:
    """Play the cell. Every part is ready again afterwards, or the outcome says which is not."""
    trial = await Trial.begin(stage, cell, seed, show)
    deadline = time.monotonic() + within
    if cell.point:
        stage.arm(cell.point)
    striking = None
    try:
        async with asyncio.timeout(within + 60):
            submission_id = await trial.submit(min(inputs, POINT_INPUTS) if cell.point else inputs)
            if cell.retried:
                await trial.settle(submission_id, deadline)
                striking = asyncio.create_task(strike_all(stage.stack, cell.strikes(seed)))
                await trial.retry(submission_id)
            else:
                striking = asyncio.create_task(strike_all(stage.stack, cell.strikes(seed)))
            if cell.cancelled:
                await trial.cancel(submission_id, deadline)
            await trial.settle(submission_id, deadline)
            await striking
            await trial.judge(submission_id, deadline)
    except (JobError, TimeoutError) as error:
        trial.fail(error)
    finally:
        if striking is not None:
            striking.cancel()
            await asyncio.gather(striking, return_exceptions=True)
    if cell.point and not stage.has_struck(cell.point):
        trial.problems.append("the job never reached this failpoint")
        stage.disarm()
    return trial.outcome()
