"""The tables are a function of the log: two workers, met at every await, make what one alone makes in log order.

A long form, of as many histories as EVERYRUN_HISTORIES says, is in ``make chaos``.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from everyrun.extend.reserved import Reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.reading import Poll
from everyrun.projection.apply import apply
from everyrun.projection.feed import RETRYABLE
from tests.histories import a_history
from tests.integration.tables import TABLES, connect, contents
from tests.records import INSTALLATION, LOG, Logged, an_input, batch_event, in_polls, lay_out, run_event

PARTITIONS = 4
SOURCE = LOG._replace(partitions=PARTITIONS)
HISTORIES = int(os.environ.get("EVERYRUN_HISTORIES", "40"))
#: A statement that takes longer, in seconds, waits for a lock: the other worker continues.
BLOCKED_AFTER = 0.004
_STATEMENTS = frozenset({"execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_records_to_table"})


class Turns:
    """Lets one random worker at a time begin its next statement."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._working: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._changed = asyncio.Event()

    async def mine(self, worker: str) -> None:
        """Return when it is the worker's turn."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[worker] = future
        self._changed.set()
        await future

    async def play(self, workers: dict[str, Any]) -> None:
        """Run the workers, each under its name, to their end."""
        self._working = set(workers)
        tasks = {name: asyncio.create_task(self._ended(name, work)) for name, work in workers.items()}
        try:
            while self._working:
                while self._waiting.keys() != self._working:
                    self._changed.clear()
                    try:
                        await asyncio.wait_for(self._changed.wait(), BLOCKED_AFTER)
                    except TimeoutError:
                        break
                if self._waiting:
                    self._waiting.pop(self._chance.choice(sorted(self._waiting))).set_result(None)
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()

    async def _ended(self, name: str, work: Any) -> None:
        try:
            await work
        finally:
            self._working.discard(name)
            self._waiting.pop(name, None)
            self._changed.set()


class Stepping:
    """A connection whose every statement waits for its worker's turn."""

    def __init__(self, connection: asyncpg.Connection, turns: Turns, worker: str) -> None:
        self._connection, self._turns, self._worker = connection, turns, worker

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in _STATEMENTS:
            return found

        async def stepped(*arguments: Any, **more: Any) -> Any:
            await self._turns.mine(self._worker)
            return await found(*arguments, **more)

        return stepped


async def nothing_aside(poison: Any) -> None:
    assert not poison, poison


async def work(connection: Any, groups: list[list[Poll]]) -> None:
    """Apply the groups one after another, and retry where the feed would."""
    for group in groups:
        for _ in range(20):
            try:
                await apply(connection, group, SOURCE, nothing_aside)
                break
            except (*RETRYABLE, asyncpg.UniqueViolationError):
                continue
        else:
            pytest.fail(f"not applied in 20 tries: {group}")


def in_log_order(log: dict[tuple[str, int], list[Logged]], *, one_by_one: bool) -> list[list[Poll]]:
    """Return one partition after another, each as a whole or record by record."""
    parts = sorted(log.items())
    if one_by_one:
        return [[Poll(*position, [record])] for position, records in parts for record in records]
    return [[Poll(*position, records)] for position, records in parts]


@pytest.fixture
async def connections(database: str) -> AsyncIterator[list[asyncpg.Connection]]:
    opened = [await connect(database) for _ in range(2)]
    for connection in opened:
        await connection.execute("set deadlock_timeout = '20ms'; set synchronous_commit = off")
    yield opened
    for connection in opened:
        await connection.close()


async def emptied(connection: asyncpg.Connection) -> None:
    await connection.execute(";".join(f"delete from {table}" for table in (*TABLES, "applied_offsets")))


async def agree(connections: list[asyncpg.Connection], seed: int) -> None:
    """Check one history: two concurrent workers make the same rows as one worker in log order."""
    chance = random.Random(seed)
    log = lay_out(a_history(chance), PARTITIONS)
    first, second = connections
    await emptied(first)
    await work(first, in_log_order(log, one_by_one=seed % 8 == 0))
    wanted = await contents(first)
    await balanced(first, seed)
    shares = [{p: records for p, records in log.items() if p[1] % 2 == share} for share in (0, 1)]
    await emptied(first)
    turns = Turns(chance)
    await turns.play(
        {
            name: work(Stepping(connection, turns, name), in_polls(share, chance))
            for name, connection, share in zip("ab", (first, second), shares, strict=True)
        }
    )
    found = await contents(first)
    for table in TABLES:
        assert found[table] == wanted[table], f"history {seed}, {table}"


async def balanced(connection: asyncpg.Connection, seed: int) -> None:
    """Check that every run is in one table, in its own batch, and that the counters agree with the rows."""
    for line in await connection.fetch("select * from report where not balanced"):
        pytest.fail(f"history {seed}: not balanced: {dict(line)}")
    twice = """
        select run_id from (
            select run_id from results where run_id is not null
            union all select run_id from other_runs union all select run_id from unmatched_runs
        ) runs group by run_id having count(*) > 1
    """
    assert not await connection.fetch(twice), f"history {seed}"
    foreign = """
        select r.input_id, r.run_id from (
            select input_id, run_id, batch_id from results where run_id is not null
            union all select input_id, run_id, batch_id from other_runs
        ) r left join batches b using (batch_id)
        where b.batch_id is null or r.input_id <> all (b.input_ids)
    """
    assert not await connection.fetch(foreign), f"history {seed}"


async def test_two_workers_make_the_rows_of_one_in_log_order(connections):
    base = int(os.environ.get("EVERYRUN_HISTORIES_FROM", "0"))
    for seed in range(base, base + HISTORIES):
        await agree(connections, seed)


def by_batch(records: list[Record]) -> dict[tuple[str, int], list[Logged]]:
    """Return a log partitioned by batch, as with another number of partitions or with older keys."""
    log: dict[tuple[str, int], list[Logged]] = {}
    for r in records:
        attempt = int(re.search(rb"batch_(\d)", r.value).group(1))  # type: ignore[union-attr]
        there = log.setdefault((r.topic, attempt % 2), [])
        there.append(Logged("everyrun." + r.topic, attempt % 2, len(there), r.key, r.value, r.headers, 1))
    return log


async def test_no_state_of_a_duplicate_is_lost_between_two_workers(connections):
    """A chunk accepted twice, with batches in two partitions: both workers write duplicates of the same inputs."""
    given = [an_input("sub_1", n) for n in (1, 2)]
    said = []
    for attempt in (1, 2):
        more = {"batch_id": f"batch_{attempt}", "inputs": given}
        said.append(batch_event(events.BatchSubmitted, "sub_1", "sub_1.c1", attempt, 1, **more))
        for twin in "ab":
            for i in given:
                key = Reserved(INSTALLATION, i.input_id, "sub_1.c1", attempt, i.position)
                run = f"run_{attempt}{twin}_{i.position}", f"batch_{attempt}"
                said.append(run_event(*run, "PROCESSING", 2, key=key))
                said.append(run_event(*run, "PROCESSED", 4, key=key, end=3))
    log = by_batch(said)
    first, second = connections
    chance = random.Random(1)
    for _ in range(15):
        await emptied(first)
        turns = Turns(chance)
        shares = [{p: records for p, records in log.items() if p[1] == share} for share in (0, 1)]
        await turns.play(
            {
                name: work(Stepping(connection, turns, name), in_polls(share, chance))
                for name, connection, share in zip("ab", connections, shares, strict=True)
            }
        )
        report = await second.fetch("select balanced, runs_observed, duplicates, counts from report order by attempt")
        assert [tuple(r)[:3] for r in report] == [(True, 4, 2), (True, 4, 4)]
        assert await second.fetch("select distinct status from other_runs") == [("PROCESSED",)]
