"""``make soak``: jobs one after another, while Extend's faults change and processes are killed at random."""

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
from chaos.memory import Sample, slope, sparkline
from chaos.stage import Stage, hush, staged
from chaos.strikes import all_ready, running, strike
from chaos.witness import Witness
from everyrun.cli import exits
from everyrun.cli.signals import StoppedError, until_stopped

#: Megabytes a minute that are no growth.
FLAT = 1.0
_INPUTS, _OPEN_JOBS = 1000, 2
#: The first seconds, in which any process may be killed; later only one that has lived long enough to be measured.
_WILD, _LIVES = 100.0, 330.0
#: Kafka and Postgres are given so long before they are struck again, in seconds.
_BASE_LIVES = 60.0
_SETTLED_WITHIN = 300.0
_MOODS = (
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
    """A soak on a stage: what was handed in, what became of it, who was killed, how much memory each service has."""

    def __init__(self, stage: Stage, seed: int, minutes: float, stall_after: float) -> None:
        self.stage = stage
        self.chance = random.Random(seed)
        self.seconds = minutes * 60
        self.stall_after = stall_after
        self.began = time.monotonic()
        self.mood = "none"
        #: The part that was struck and is not back yet.
        self.broken = ""
        self.kills: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.settled: dict[str, int] = {}
        self.done: list[str] = []
        self.lost: list[str] = []
        self.doubled = 0
        self.stalls: list[str] = []
        #: The longest time in which nothing was settled, as stalls are counted.
        self.longest = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    async def run(self) -> None:
        """Until the time is over and every job has been judged."""
        self.witness = await Witness.now(self.stage.endpoints["kafka_bootstrap"])
        self.began = time.monotonic()
        others = [self._kill_on, self._change_on, self._measure_on, self._tell_on, self._watch_stalls]
        async with meanwhile(*(other() for other in others)), asyncio.TaskGroup() as group:
            for _ in range(_OPEN_JOBS):
                group.create_task(self._jobs())

    async def _jobs(self) -> None:
        while self.elapsed < self.seconds:
            skip = await self._patiently(self.stage.runs)
            submission_id = await jobs.hand_in(self.stage.http, self.stage.endpoints, _INPUTS)
            self.settled[submission_id] = 0
            deadline = time.monotonic() + _SETTLED_WITHIN
            where = self.stage.http, self.stage.endpoints, submission_id
            await jobs.settled(*where, deadline, self._note)
            judged = await jobs.judged(*where, self.witness, deadline + 30, skip)
            if judged.problems:
                self.lost.append(f"{submission_id}: {'; '.join(judged.problems)}")
            self.doubled += judged.comparison.double_batches
            del self.settled[submission_id]
            self.done.append(submission_id)

    def _note(self, report: dict[str, Any]) -> None:
        self.settled[report["submission_id"]] = report["settled"]

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except httpx.TransportError:
                await asyncio.sleep(0.2)

    async def _kill_on(self) -> None:
        """Kill or terminate one part after another, at random."""
        stack = self.stage.stack
        while True:
            await asyncio.sleep(self.chance.uniform(8, 20))
            part = self.chance.choice([name for name in stack.names if name != "emulator"])
            how = self.chance.choice(("kill", "kill", "term"))
            lives = _LIVES if part in self.stage.processes() else _BASE_LIVES
            if self.elapsed > _WILD and _age(stack.part(part).pid) < lives:
                continue
            self.kills[part] += 1
            self.broken = part
            try:
                await strike(stack, part, how)
                await running(stack, part)
            except TimeoutError as error:
                self.stalls.append(f"{self.elapsed:.0f} s: {error}")
            self.broken = ""

    async def _change_on(self) -> None:
        """Give Extend other faults every now and then; none once the time is over."""
        while True:
            self.mood = self.chance.choice(_MOODS) if self.elapsed < self.seconds else "none"
            await self._patiently(lambda: self.stage.faults(self.mood))
            await asyncio.sleep(self.chance.uniform(10, 25))

    async def _measure_on(self) -> None:
        while True:
            for name, pid in self.stage.processes().items():
                if pid is None:
                    continue
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    resident = process.memory_info().rss / (1 << 20)
                    self.samples.append(Sample(self.elapsed, name, process.pid, _age(pid), resident))
            await asyncio.sleep(2)

    async def _watch_stalls(self) -> None:
        """Note each time in which nothing was settled for long, though inputs were open.

        Time in which a struck part is not back is left out of it, and ends nothing: parts are struck more often than
        a stall is long.
        """
        seen, last, still = self._moved(), time.monotonic(), 0.0
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            if self._moved() != seen or not self.settled:
                seen, still = self._moved(), 0.0
            elif not self.broken:
                still += now - last
            last = now
            self.longest = max(self.longest, still)
            if still > self.stall_after:
                self.stalls.append(f"{self.elapsed:.0f} s: nothing settled for {self.stall_after:.0f} s ({self.mood})")
                still = 0.0

    def _moved(self) -> tuple[int, ...]:
        return len(self.done), *self.settled.values()

    async def _tell_on(self) -> None:
        while True:
            await asyncio.sleep(30)
            self.tell()

    def tell(self) -> None:
        """A line of how it stands."""
        newest = {sample.service: sample.resident for sample in self.samples}
        memory = ", ".join(f"{name} {resident:.0f}" for name, resident in newest.items())
        _console.print(
            f"{self.elapsed:4.0f} s: {len(self.done)} jobs done, {len(self.settled)} open; lost {len(self.lost)}, "
            f"doubled {self.doubled}, stalls {len(self.stalls)}; {self.kills.total()} killed; faults {self.mood}\n"
            f"       MB: {memory}"
        )

    def slopes(self) -> dict[str, float | None]:
        """By how many megabytes a minute each service grows."""
        names = sorted({sample.service for sample in self.samples})
        return {name: slope(s for s in self.samples if s.service == name) for name in names}


def _age(pid: int | None) -> float:
    try:
        return time.time() - psutil.Process(pid).create_time() if pid else 0.0
    except psutil.Error:
        return 0.0


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long jobs are handed in.")] = 10,
    seed: Annotated[int, typer.Option(help="The same seed kills and changes the same.")] = 1,
    stall: Annotated[float, typer.Option(min=1, help="Seconds without a row settled that are a stall.")] = 30,
    results: Annotated[Path, typer.Option(help="Where the memory of every service is written, as CSV.")] = Path(
        ".chaos"
    ),
) -> None:
    """Hand in one job after another while everything is broken at random; see that nothing is lost and nothing grows.

    Ends with 0 only if nothing was lost or doubled, nothing stalled, and no service's resident memory grows by
    1 MB a minute, each process counted from two minutes after its start.

    Example: python -m chaos.soak --minutes 10
    """

    async def run() -> Soak:
        with tempfile.TemporaryDirectory(prefix="everyrun-soak-", ignore_cleanup_errors=True) as folder:
            async with staged(Path(folder), seed, processors=2, run_seconds="0.2:5") as stage:
                await all_ready(stage.stack)
                soak = Soak(stage, seed, minutes, stall)
                await soak.run()
                return soak

    hush()
    try:
        soak = asyncio.run(until_stopped(run()))
    except StoppedError:
        _console.print("interrupted")
        raise typer.Exit(exits.INTERRUPTED) from None
    good = _show(soak)
    _write(soak, results / "soak-memory.csv")
    raise typer.Exit(0 if good else 1)


def _show(soak: Soak) -> bool:
    """Print what came of it; whether it is good."""
    soak.tell()
    slopes = soak.slopes()
    table = Table("service", "MB a minute", "least to greatest MB", "over time", title="Resident memory")
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
        f"for {soak.longest:.0f} s at most nothing was settled"
    )
    flat = all(growth is not None and growth < FLAT for growth in slopes.values())
    return flat and not soak.lost and not soak.doubled and not soak.stalls


def _write(soak: Soak, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        writer.writerows(soak.samples)
    _console.print(f"[dim]every sample: {path}")


if __name__ == "__main__":
    typer.run(main)
