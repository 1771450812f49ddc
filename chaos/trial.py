"""Play one cell on a stage: set it up, submit its jobs, judge them, and make its outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos import jobs, outcomes
from chaos.cells import FAILING, UNSENT, Cell
from chaos.log_witness import LogWitness
from chaos.outcomes import Outcome
from chaos.stage import Stage
from chaos.strikes import all_ready
from everyrun.cli.job import JobError

#: Shows a line of progress.
ShowProgress = Callable[[str], None]


@dataclass
class Trial:
    """A cell that is being played: where the stage stood at its start, and the sums of its jobs so far.

    The emulator's first ``runs_before`` runs belong to earlier cells.
    """

    stage: Stage
    cell: Cell
    seed: int
    show: ShowProgress
    witness: LogWitness
    runs_before: int
    restarts_before: int
    began: float = field(default_factory=time.monotonic)
    expected: int = 0
    settled: int = 0
    duplicates: int = 0
    double_batches: int = 0
    problems: list[str] = field(default_factory=list)

    @classmethod
    async def begin(cls, stage: Stage, cell: Cell, seed: int, show: ShowProgress) -> Trial:
        """Wait until every part is ready, set the cell's faults, and note where the stage stands."""
        await all_ready(stage.stack)
        await stage.faults(FAILING if cell.retried else cell.faults)
        witness = await LogWitness.from_now(stage.endpoints["kafka_bootstrap"])
        return cls(stage, cell, seed, show, witness, await stage.runs(), stage.restarts())

    async def submit(self, count: int) -> str:
        """Submit a job of ``count`` inputs, and return its submission id. Raises JobError."""
        self.expected += count
        return await jobs.submit(self.stage.http, self.stage.endpoints, count)

    async def retry(self, submission_id: str) -> None:
        """Retry the failed inputs of the job, under the faults of the cell. Raises JobError."""
        await self.stage.faults(self.cell.faults)
        await jobs.retry(self.stage.http, self.stage.endpoints, submission_id)

    async def cancel(self, submission_id: str, deadline: float) -> None:
        """Cancel the job, once Extend has runs of it if it ever will. Raises JobError."""
        while self.cell.point != UNSENT and await self.stage.runs() == self.runs_before:
            if time.monotonic() > deadline:
                raise JobError("Extend got no run of the job that is to be cancelled")
            await asyncio.sleep(0.1)
        await jobs.cancel(self.stage.http, self.stage.endpoints, submission_id)

    async def settle(self, submission_id: str, deadline: float) -> None:
        """Wait until no input of the job is open, or until the deadline (monotonic). Raises JobError."""
        await jobs.settle(
            self.stage.http,
            self.stage.endpoints,
            submission_id,
            deadline,
            lambda report: self.show(progress_of(report)),
        )

    async def judge(self, submission_id: str, deadline: float) -> None:
        """Compare the job with the truth until they agree or the deadline has passed. Raises JobError."""
        judgement = await jobs.judge(
            self.stage.http, self.stage.endpoints, submission_id, self.witness, deadline, self.runs_before
        )
        self.settled += judgement.report["settled"]
        self.duplicates += judgement.comparison.duplicates
        self.double_batches += judgement.comparison.double_batches
        self.problems += [f"{submission_id}: {problem}" for problem in judgement.problems]

    def fail(self, error: Exception) -> None:
        """Add an error that ended the cell early to its problems."""
        self.problems.append(f"{type(error).__name__}: {error}" if str(error) else "the cell did not end in time")

    def outcome(self, details: str = "") -> Outcome:
        """Return the outcome of the cell, which has just ended; ``details`` follow the cell's description."""
        return outcomes.ended(
            self.cell.name,
            self.seed,
            f"{self.cell.what}; {details}" if details else self.cell.what,
            self.began,
            self.problems,
            expected=self.expected,
            settled=self.settled,
            duplicates=self.duplicates,
            double_batches=self.double_batches,
            deaths=self.stage.restarts() - self.restarts_before,
        )


def progress_of(report: Mapping[str, Any]) -> str:
    """Return the progress of a job as one line."""
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(report["by_status"].items()))
    return f"{report['settled']} of {report['expected']} settled ({statuses})"
