"""Play a cell that kills two parts within 2 s of each other, in the middle of a job, twice."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from chaos.background import meanwhile
from chaos.cells import INPUTS, WITHIN, Cell, PairStrike
from chaos.outcomes import Outcome
from chaos.stage import Stage
from chaos.strikes import all_ready, strike_pair
from chaos.trial import ShowProgress, Trial
from chaos.unexplained_stalls import JobFollower
from everyrun.cli.job import JobError

#: Maximum number of seconds between the two kills of a pair.
_MAX_GAP = 2.0
#: Seconds within which the first rows settle and both parts are killed.
_STRUCK_WITHIN = 120.0
#: Shares of a cell's inputs that are submitted for each pair of kills: a job that is hit in the middle, and one that
#: is submitted just before, so that some of its inputs have not been sent yet.
_MIDDLE, _LATE = 0.4, 0.1


async def play(
    stage: Stage, cell: Cell, seed: int, show: ShowProgress, inputs: int = INPUTS, within: float = WITHIN
) -> Outcome:
    """Play the cell. All jobs must end well within ``within`` seconds after the last kill."""
    trial = await Trial.begin(stage, cell, seed, show)
    kills: list[_PairKill] = []
    followers: list[JobFollower] = []
    try:
        async with AsyncExitStack() as background:

            async def submit(share: float) -> JobFollower:
                follower = JobFollower(stage, await trial.submit(max(round(inputs * share), 1)))
                followers.append(follower)
                await background.enter_async_context(meanwhile(follower.run()))
                return follower

            for pair_strike in cell.pair_strikes(seed):
                async with asyncio.timeout(_STRUCK_WITHIN):
                    await (await submit(_MIDDLE)).first_settled()
                    await all_ready(stage.stack)
                    await asyncio.sleep(pair_strike.after)
                    late = await submit(_LATE)
                    gap = await strike_pair(stage.stack, pair_strike)
                    await late.seen()
                kills.append(_PairKill(pair_strike, gap, sum(job.open for job in followers)))
            deadline = time.monotonic() + within
            async with asyncio.timeout(within + 60):
                for job in followers:
                    await trial.settle(job.submission_id, deadline)
                    await trial.judge(job.submission_id, deadline)
    except (JobError, TimeoutError) as error:
        trial.fail(error)
    trial.problems += [job.stalls.unexplained for job in followers if job.stalls.unexplained]
    trial.problems += [problem for kill in kills for problem in kill.problems()]
    return trial.outcome("; ".join(str(kill) for kill in kills))


@dataclass
class _PairKill:
    """Two kills that were made, the seconds between them, and the number of open inputs after them."""

    strike: PairStrike
    gap: float
    open: int

    def __str__(self) -> str:
        return f"{self.strike.first}, {self.gap:.1f} s later {self.strike.second}, {self.open:,} inputs open"

    def problems(self) -> list[str]:
        """Return how the kills differ from those that the cell promises."""
        which = f"{self.strike.first} and {self.strike.second}"
        problems = []
        if self.gap > _MAX_GAP:
            problems.append(f"{which} were killed {self.gap:.1f} s apart")
        if not self.open:
            problems.append(f"all jobs were over when {which} were killed: use more --inputs")
        return problems
