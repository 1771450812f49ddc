"""Play a cell with several processors, one of which is killed or terminated every few seconds while events flow.

In the end every row must be right and published, and no stall may have been long.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import asyncpg
from benchmarks import world

from chaos import outcomes
from chaos.background import meanwhile
from chaos.cells import Cell
from chaos.log_witness import LogWitness, unpublished_inputs
from chaos.outcomes import Outcome
from chaos.strikes import strike
from chaos.trial import ShowProgress
from everyrun.embedded.stack import Options, Stack
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.settings import Settings

_BATCH = 1000
_EVENTS = 60_000
#: Events written a second, so that they flow for forty seconds.
_EVENTS_PER_SECOND = 1500
#: Maximum number of seconds without a settled row while events are left.
MAX_STALL = 30.0
_WITHIN = 180.0


async def play(folder: Path, cell: Cell, seed: int, show: ShowProgress, events: int = _EVENTS) -> Outcome:
    """Play the cell on a stack that has no services except processors."""
    options = Options(folder, processors=cell.workers, seed=seed, services=(), most_backoff=1.0)
    began = time.monotonic()
    async with Stack(options) as stack:
        names = [name for name in stack.names if name.startswith("processor")]
        witness = await LogWitness.from_now(stack.endpoints["kafka_bootstrap"])
        began = time.monotonic()
        async with _writing(stack, events):
            await _first_settled(stack.endpoints["postgres_dsn"])
            async with _striking(stack, names, seed):
                settled, stall = await _watch(stack.endpoints["postgres_dsn"], events, show)
        problems = [f"no row settled for {stall:.0f} s"] if stall > MAX_STALL else []
        problems += await _judge(stack.endpoints["postgres_dsn"], events, witness)
        deaths = sum(stack.part(name).restarts for name in names)
        return outcomes.ended(
            cell.name,
            seed,
            f"{cell.what}; the longest stall was {stall:.0f} s",
            began,
            problems,
            expected=events,
            settled=settled,
            deaths=deaths,
        )


@contextlib.asynccontextmanager
async def _striking(stack: Stack, names: list[str], seed: int) -> AsyncIterator[None]:
    """Kill or terminate one of the parts every few seconds while the block runs."""
    chance = Random(seed)

    async def strike_on() -> None:
        while True:
            await asyncio.sleep(chance.uniform(3, 12))
            await strike(stack, chance.choice(names), chance.choice(("kill", "term")))

    async with meanwhile(strike_on()):
        yield


@contextlib.asynccontextmanager
async def _writing(stack: Stack, events: int) -> AsyncIterator[None]:
    """Write the batches, then their runs at an even rate, while the block runs."""

    async def write() -> None:
        settings = Settings(kafka_bootstrap=stack.endpoints["kafka_bootstrap"])
        async with Producer(settings, linger_ms=5) as producer:
            await producer.append(world.batches(events // _BATCH, _BATCH))
            began = time.monotonic()
            for number, part in enumerate(_parts(world.runs(events, _BATCH, 600))):
                await producer.append(part)
                await asyncio.sleep(max(began + number * len(part) / _EVENTS_PER_SECOND - time.monotonic(), 0))

    async with meanwhile(write()):
        yield


def _parts(records: Iterator[Record], size: int = 300) -> Iterator[list[Record]]:
    part = []
    for record in records:
        part.append(record)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


_SETTLED = "select coalesce(sum((counts ->> 'PROCESSED')::int), 0) from everyrun.batches"


async def _first_settled(dsn: str) -> None:
    """Wait until the first rows are settled, which shows that the processors are working."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(_WITHIN):
            while not await connection.fetchval(_SETTLED):
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def _watch(dsn: str, events: int, show: ShowProgress) -> tuple[int, float]:
    """Wait until all events are settled or the time is up. Return how many are, and the longest stall in seconds."""
    settled, moved, stall = 0, time.monotonic(), 0.0
    deadline = time.monotonic() + _WITHIN
    connection = await asyncpg.connect(dsn)
    try:
        while settled < events and time.monotonic() < deadline:
            found = await connection.fetchval(_SETTLED)
            now = time.monotonic()
            stall = max(stall, now - moved)
            if found > settled:
                settled, moved = found, now
            show(f"{settled} of {events} settled, the longest stall {stall:.1f} s")
            await asyncio.sleep(0.2)
    finally:
        await connection.close()
    return settled, stall


async def _judge(dsn: str, events: int, witness: LogWitness) -> list[str]:
    """Return what is wrong with the rows, as soon as nothing is or after a minute."""
    deadline = time.monotonic() + 60
    while True:
        problems = await _problems(dsn, events, witness)
        if not problems or time.monotonic() > deadline:
            return problems
        await asyncio.sleep(0.5)


async def _problems(dsn: str, events: int, witness: LogWitness) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select input_id, run_id, status, version from everyrun.results")
        unbalanced = await connection.fetchval("select count(*) from everyrun.report where not balanced")
        others = await connection.fetchval(
            "select (select count(*) from everyrun.other_runs) + (select count(*) from everyrun.unmatched_runs)"
        )
    finally:
        await connection.close()
    await witness.read()
    truth = {
        f"{world.SUBMISSION}:invoice-{number:07d}": (f"workflow_run_{number:020d}", "PROCESSED")
        for number in range(events)
    }
    found = {row["input_id"]: (row["run_id"], row["status"]) for row in rows}
    wrong = [input_id for input_id in truth.keys() | found.keys() if truth.get(input_id) != found.get(input_id)]
    stale = unpublished_inputs({row["input_id"]: row["version"] for row in rows}, witness.published)
    problems = [f"{len(wrong)} rows are wrong, for example {wrong[0]}"] if wrong else []
    problems += [f"{unbalanced} batches are not balanced"] if unbalanced else []
    problems += [f"{others} runs are counted as duplicate or unmatched"] if others else []
    problems += [f"{len(stale)} rows are not published in their last version, for example {stale[0]}"] if stale else []
    return problems
