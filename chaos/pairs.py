"""Playing a cell in which two parts are killed within 2 s of each other, in the middle of a job, twice."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from chaos import jobs
from chaos.background import meanwhile
from chaos.cells import INPUTS, WITHIN, Cell, Volley
from chaos.outcomes import Outcome
from chaos.play import Tell, outcome, progress_of
from chaos.stage import Stage
from chaos.standstill import Following
from chaos.strikes import all_ready, strike_pair
from chaos.witness import Witness
from everyrun.cli.job import JobError

#: The kills of a pair may not lie further apart than this, in seconds.
_APART = 2.0
#: The first rows are settled, and the strikes are over, within so many seconds.
_STRUCK_WITHIN = 120.0


#: Of a cell's inputs these shares are handed in before each volley: a job that is hit in the middle, and a job that
#: is handed in just before, so that some inputs are not sent yet.
_MIDDLE, _LATE = 0.4, 0.1


async def play(
    stage: Stage, cell: Cell, seed: int, tell: Tell, inputs: int = INPUTS, within: float = WITHIN
) -> Outcome:
    """Play the cell. All jobs must end well within ``within`` seconds after the last kill."""
    await all_ready(stage.stack)
    await stage.faults(cell.faults)
    witness = await Witness.now(stage.endpoints["kafka_bootstrap"])
    skip = await stage.runs()
    deaths, began = stage.deaths(), time.monotonic()
    total = {"settled": 0, "expected": 0}
    doubles = duplicates = 0
    problems: list[str] = []
    kills: list[_Kills] = []
    followed: list[Following] = []
    try:
        async with AsyncExitStack() as background:

            async def hand_in(share: float) -> Following:
                count = max(round(inputs * share), 1)
                job = Following(stage, await jobs.hand_in(stage.http, stage.endpoints, count))
                followed.append(job)
                await background.enter_async_context(meanwhile(job.run()))
                return job

            for volley in cell.volleys(seed):
                async with asyncio.timeout(_STRUCK_WITHIN):
                    await (await hand_in(_MIDDLE)).first_settled()
                    await all_ready(stage.stack)
                    await asyncio.sleep(volley.after)
                    late = await hand_in(_LATE)
                    gap = await strike_pair(stage.stack, volley)
                    await late.seen()
                kills.append(_Kills(volley, gap, sum(job.open for job in followed)))
            deadline = time.monotonic() + within
            async with asyncio.timeout(within + 60):
                for job in followed:
                    where = stage.http, stage.endpoints, job.submission_id
                    await jobs.settled(*where, deadline, lambda found: tell(progress_of(found)))
                    judged = await jobs.judged(*where, witness, deadline, skip)
                    problems += [f"{job.submission_id}: {problem}" for problem in judged.problems]
                    total = {name: total[name] + judged.report[name] for name in total}
                    doubles += judged.comparison.double_batches
                    duplicates += judged.comparison.duplicates
    except (JobError, TimeoutError) as error:
        problems.append(f"{type(error).__name__}: {error}" if str(error) else "the cell did not end in time")
    problems += [job.standstill.unexplained for job in followed if job.standstill.unexplained]
    problems += [problem for kill in kills for problem in kill.problems()]
    return outcome(
        cell,
        seed,
        began,
        problems,
        total,
        duplicates,
        doubles,
        deaths=stage.deaths() - deaths,
        what="; ".join(str(kill) for kill in kills),
    )


@dataclass
class _Kills:
    """The two kills of a volley: how far apart they were, and how many inputs were open after them."""

    volley: Volley
    gap: float
    open: int

    def __str__(self) -> str:
        return f"{self.volley.first}, {self.gap:.1f} s later {self.volley.second}, {self.open:,} inputs open"

    def problems(self) -> list[str]:
        """Return in what the kills were not those of the cell."""
        which = f"{self.volley.first} and {self.volley.second}"
        problems = []
        if self.gap > _APART:
            problems.append(f"{which} were killed {self.gap:.1f} s apart")
        if not self.open:
            problems.append(f"all jobs were over when {which} were killed: use more --inputs")
        return problems
