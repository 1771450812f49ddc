"""Two and three processors, one killed or terminated every few seconds while events flow: all there, no long stall."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import asyncpg
from benchmarks import world

from chaos.background import meanwhile
from chaos.cells import Cell
from chaos.outcomes import Outcome
from chaos.play import Tell, machine
from chaos.strikes import strike
from chaos.witness import Witness, unpublished
from everyrun.embedded.stack import Options, Stack
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.settings import Settings

_BATCH = 1000
_EVENTS = 60_000
#: Events a second that are written: they flow for forty seconds.
_RATE = 1500
#: No longer than this may pass without a row settled while there is something to do, in seconds.
STALL = 30.0
_WITHIN = 180.0


async def play(folder: Path, cell: Cell, seed: int, tell: Tell, events: int = _EVENTS) -> Outcome:
    """What came of it, on a stack that has processors alone."""
    options = Options(folder, processors=cell.workers, seed=seed, services=(), most_backoff=1.0)
    began = time.monotonic()
    async with Stack(options) as stack:
        names = [name for name in stack.names if name.startswith("processor")]
        witness = await Witness.now(stack.endpoints["kafka_bootstrap"])
        began = time.monotonic()
        async with _writing(stack, events):
            await _begun(stack.endpoints["postgres_dsn"])
            async with _striking(stack, names, seed):
                settled, stall = await _watch(stack.endpoints["postgres_dsn"], events, tell)
        problems = [f"nothing moved for {stall:.0f} s"] if stall > STALL else []
        problems += await _judge(stack.endpoints["postgres_dsn"], events, witness)
        deaths = sum(stack.part(name).restarts for name in names)
        seconds = time.monotonic() - began
    date = datetime.now(UTC).date().isoformat()
    what = f"{cell.what}; the longest stall was {stall:.0f} s"
    return Outcome(cell.name, seed, what, seconds, events, settled, 0, 0, deaths, problems, machine(), date)


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
    """Write the batches, and then their runs at an even rate, while the block runs."""

    async def write() -> None:
        settings = Settings(kafka_bootstrap=stack.endpoints["kafka_bootstrap"])
        async with Producer(settings, linger_ms=5) as producer:
            await producer.append(world.batches(events // _BATCH, _BATCH))
            began = time.monotonic()
            for number, part in enumerate(_parts(world.runs(events, _BATCH, 600))):
                await producer.append(part)
                await asyncio.sleep(max(began + number * len(part) / _RATE - time.monotonic(), 0))

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


async def _begun(dsn: str) -> None:
    """Return when the first rows are settled: the processors are at work."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(_WITHIN):
            while not await connection.fetchval(_SETTLED):
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def _watch(dsn: str, events: int, tell: Tell) -> tuple[int, float]:
    """Wait until all are settled, or it takes too long: how many are, and the longest time in which none came."""
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
            tell(f"{settled} of {events} settled, the longest stall {stall:.1f} s")
            await asyncio.sleep(0.2)
    finally:
        await connection.close()
    return settled, stall


async def _judge(dsn: str, events: int, witness: Witness) -> list[str]:
    """All rows there, right, balanced, and published as they are; in time."""
    deadline = time.monotonic() + 60
    while True:
        problems = await _problems(dsn, events, witness)
        if not problems or time.monotonic() > deadline:
            return problems
        await asyncio.sleep(0.5)


async def _problems(dsn: str, events: int, witness: Witness) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select input_id, run_id, status, version from everyrun.results")
        unbalanced = await connection.fetchval("select count(*) from everyrun.report where not balanced")
        others = await connection.fetchval(
            "select (select count(*) from everyrun.duplicate_runs) + (select count(*) from everyrun.unmatched_runs)"
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
    behind = unpublished({row["input_id"]: row["version"] for row in rows}, witness.published)
    problems = [f"{len(wrong)} rows are wrong, as {wrong[0]}"] if wrong else []
    problems += [f"{unbalanced} batches are not balanced"] if unbalanced else []
    problems += [f"{others} runs are taken for duplicates or unmatched"] if others else []
    problems += [f"{len(behind)} rows are not published as they are, as {behind[0]}"] if behind else []
    return problems
