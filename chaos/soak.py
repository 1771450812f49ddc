"""Run ``make soak``: submit job after job while Extend's faults change and processes are killed at random."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from chaos import jobs
from chaos.background import meanwhile
from chaos.log_witness import LogWitness
from chaos.memory import Sample, slope, sparkline
from chaos.stage import Stage, running_stage, silence_kafka_client
from chaos.strikes import all_ready, ready_pid, strike
from everyrun.cli import exits
from everyrun.cli.signals import StoppedError, until_stopped

#: Memory growth, in megabytes a minute, that still counts as none.
MAX_GROWTH = 1.0
_INPUTS, _OPEN_JOBS = 1000, 2
#: In the first seconds any process may be killed; later only one that is old enough for its memory to be measured.
_KILL_ANY_UNTIL, _SERVICE_MIN_AGE = 100.0, 330.0
#: Minimum age in seconds at which Kafka, Postgres or the emulator is struck.
_SERVER_MIN_AGE = 60.0
_SETTLED_WITHIN = 300.0
_FAULT_SETS = (
    "none",
    "drop=0.02,duplicate=0.1,reorder=0.2,submit_429=0.05,get_429=0.02",
    "drop=0.3",
    "submit_429=0.5,get_429=0.3",
    "submit_5xx=0.2,get_5xx=0.2",
    "accept_then_timeout=0.2",
    "garbage=0.1",
    "slow=1,delay=5",
    "corrupt=0.3,late=0.05",
    "url_expired=1",
    "copies=3,reorder=0.5",
    "skew=-600",
)
_console = Console(width=None if sys.stdout.isatty() else 160)


class Soak:
    """A soak on a stage: its jobs and what became of them, the kills, and the memory of each service."""

    def __init__(self, stage: Stage, seed: int, minutes: float, stall_after: float) -> None:
        self.stage = stage
        self.chance = random.Random(seed)
        self.seconds = minutes * 60
        self.stall_after = stall_after
        self.began = time.monotonic()
        self.faults = "none"
        #: The part that was struck and is not ready yet.
        self.struck_part = ""
        self.kills: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.settled: dict[str, int] = {}
        self.done: list[str] = []
        self.lost: list[str] = []
        self.doubled = 0
        self.stalls: list[str] = []
        #: The longest time without a settled row, counted as for stalls.
        self.longest = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    async def run(self) -> None:
        """Run until the time is over and every job has been judged."""
        self.witness = await LogWitness.from_now(self.stage.endpoints["kafka_bootstrap"])
        self.began = time.monotonic()
        others = [self._kill_parts, self._change_faults, self._measure_memory, self._show_regularly, self._watch_stalls]
        async with meanwhile(*(other() for other in others)), asyncio.TaskGroup() as group:
            for _ in range(_OPEN_JOBS):
                group.create_task(self._jobs())

    async def _jobs(self) -> None:
        while self.elapsed < self.seconds:
            runs_before = await self._retry(self.stage.runs)
            submission_id = await jobs.submit(self.stage.http, self.stage.endpoints, _INPUTS)
            self.settled[submission_id] = 0
            deadline = time.monotonic() + _SETTLED_WITHIN
            where = self.stage.http, self.stage.endpoints, submission_id
            await jobs.settle(*where, deadline, self._note)
            judged = await jobs.judge(*where, self.witness, deadline + 30, runs_before)
            if judged.problems:
                self.lost.append(f"{submission_id}: {'; '.join(judged.problems)}")
            self.doubled += judged.comparison.double_batches
            del self.settled[submission_id]
            self.done.append(submission_id)

    def _note(self, report: dict[str, Any]) -> None:
        self.settled[report["submission_id"]] = report["settled"]

    async def _retry(self, call: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await call()
            except httpx.TransportError:
                await asyncio.sleep(0.2)

    async def _kill_parts(self) -> None:
        """Kill or terminate one part after another, at random."""
        stack = self.stage.stack
        while True:
            await asyncio.sleep(self.chance.uniform(8, 20))
            part = self.chance.choice([name for name in stack.names if name != "emulator"])
            how = self.chance.choice(("kill", "kill", "term"))
            min_age = _SERVICE_MIN_AGE if part in self.stage.service_pids() else _SERVER_MIN_AGE
            if self.elapsed > _KILL_ANY_UNTIL and _age(stack.part(part).pid) < min_age:
                continue
            self.kills[part] += 1
            self.struck_part = part
            try:
                await strike(stack, part, how)
                await ready_pid(stack, part)
            except TimeoutError as error:
                self.stalls.append(f"{self.elapsed:.0f} s: {error}")
            self.struck_part = ""

    async def _change_faults(self) -> None:
        """Change the emulator's faults every 10 to 25 seconds; set none once the time is over."""
        while True:
            self.faults = self.chance.choice(_FAULT_SETS) if self.elapsed < self.seconds else "none"
            await self._retry(lambda: self.stage.faults(self.faults))
            await asyncio.sleep(self.chance.uniform(10, 25))

    async def _measure_memory(self) -> None:
        while True:
            for name, pid in self.stage.service_pids().items():
                if pid is None:
                    continue
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    resident = process.memory_info().rss / (1 << 20)
                    self.samples.append(Sample(self.elapsed, name, process.pid, _age(pid), resident))
            await asyncio.sleep(2)

    async def _watch_stalls(self) -> None:
        """Note each long time without a settled row though inputs are open.

        Time in which a struck part is not ready does not count, and does not end a stall: parts are struck more often
        than a stall is long.
        """
        seen, last, stalled = self._counts(), time.monotonic(), 0.0
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            if self._counts() != seen or not self.settled:
                seen, stalled = self._counts(), 0.0
            elif not self.struck_part:
                stalled += now - last
            last = now
            self.longest = max(self.longest, stalled)
            if stalled > self.stall_after:
                self.stalls.append(f"{self.elapsed:.0f} s: no row settled for {self.stall_after:.0f} s ({self.faults})")
                stalled = 0.0

    def _counts(self) -> tuple[int, ...]:
        return len(self.done), *self.settled.values()

    async def _show_regularly(self) -> None:
        while True:
            await asyncio.sleep(30)
            self.show()

    def show(self) -> None:
        """Print the state of the soak."""
        newest = {sample.service: sample.resident for sample in self.samples}
        memory = ", ".join(f"{name} {resident:.0f}" for name, resident in newest.items())
        _console.print(
            f"{self.elapsed:4.0f} s: {len(self.done)} jobs done, {len(self.settled)} open; lost {len(self.lost)}, "
            f"doubled {self.doubled}, stalls {len(self.stalls)}; {self.kills.total()} killed; faults {self.faults}\n"
            f"       MB: {memory}"
        )

    def slopes(self) -> dict[str, float | None]:
        """Return the growth of each service in megabytes a minute; None if it is too short to say."""
        names = sorted({sample.service for sample in self.samples})
        return {name: slope(s for s in self.samples if s.service == name) for name in names}


def _age(pid: int | None) -> float:
    try:
        return time.time() - psutil.Process(pid).create_time() if pid else 0.0
    except psutil.Error:
        return 0.0


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="Minutes during which jobs are submitted.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the random kills and faults.")] = 1,
    stall: Annotated[float, typer.Option(min=1, help="Seconds without a settled row that count as a stall.")] = 30,
    results: Annotated[Path, typer.Option(help="Folder for the memory samples of every service, as CSV.")] = Path(
        ".chaos"
    ),
) -> None:
    """Submit job after job while parts are killed and faults change at random; check for loss, stalls and growth.

    Exits with 0 only if nothing was lost or doubled, nothing stalled, and no service's resident memory grows by
    1 MB a minute. The memory of a process counts from two minutes after its start.

    Example: python -m chaos.soak --minutes 10
    """

    async def run() -> Soak:
        with tempfile.TemporaryDirectory(prefix="everyrun-soak-", ignore_cleanup_errors=True) as folder:
            async with running_stage(Path(folder), seed, processors=2, run_seconds="0.2:5") as stage:
                await all_ready(stage.stack)
                soak = Soak(stage, seed, minutes, stall)
                await soak.run()
                return soak

    silence_kafka_client()
    try:
        soak = asyncio.run(until_stopped(run()))
    except StoppedError:
        _console.print("interrupted")
        raise typer.Exit(exits.INTERRUPTED) from None
    good = _show(soak)
    _write(soak, results / "soak-memory.csv")
    raise typer.Exit(0 if good else 1)


def _show(soak: Soak) -> bool:
    """Print the result; return True if it is good."""
    soak.show()
    slopes = soak.slopes()
    table = Table("service", "MB a minute", "lowest to highest MB", "over time", title="Resident memory")
    for name, growth in slopes.items():
        values = [sample.resident for sample in soak.samples if sample.service == name]
        shown = "too short to say" if growth is None else f"{growth:+.2f}"
        table.add_row(name, shown, f"{min(values):.0f} to {max(values):.0f}", sparkline(values))
    _console.print(table)
    for line in [*soak.lost, *soak.stalls]:
        _console.print(f"[red]{line}")
    killed = ", ".join(f"{name} {count}" for name, count in sorted(soak.kills.items()))
    _console.print(
        f"{len(soak.done)} jobs of {_INPUTS:,} inputs in {soak.elapsed:.0f} s; killed: {killed or 'none'}\n"
        f"lost {len(soak.lost)}, doubled {soak.doubled}, stalls {len(soak.stalls)}; "
        f"longest time without a settled row: {soak.longest:.0f} s"
    )
    no_growth = all(growth is not None and growth < MAX_GROWTH for growth in slopes.values())
    return no_growth and not soak.lost and not soak.doubled and not soak.stalls


def _write(soak: Soak, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        writer.writerows(soak.samples)
    _console.print(f"[dim]every memory sample: {path}")


if __name__ == "__main__":
    typer.run(main)
