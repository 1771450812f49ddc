"""All processes share one request budget in Postgres."""

from __future__ import annotations

import asyncio
import sys
import time

import asyncpg
import pytest

from everyrun.extend.budget import GET, RUN, SLICE, Budget, SharedTurns, shared
from everyrun.settings import Settings

pytestmark = pytest.mark.stack

#: A process that takes turns, eight at a time, and prints the time of each. All processes read the same clock.
TAKER = """
import asyncio, sys, time
from everyrun.extend.budget import GET, shared
from everyrun.settings import Settings

async def main(dsn, rate, each, pause_at):
    budget = shared(Settings(postgres_dsn=dsn, requests_per_second=rate))
    async def one(number):
        for place in range(each):
            await budget.turn(GET)
            print("turn", time.monotonic(), flush=True)
            if number == 0 and place == pause_at:
                await budget.pause(GET, 1.5)
                print("pause", time.monotonic(), flush=True)
    await asyncio.gather(*(one(number) for number in range(8)))
    await budget.aclose()

asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
"""


async def take(dsn: str, rate: float, each: int, pause_at: int = -1) -> list[tuple[str, float]]:
    """The times of one process's turns."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TAKER, dsn, str(rate), str(each), str(pause_at)), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    lines = [line.split() for line in output.decode().splitlines()]
    return [(what, float(moment)) for what, moment in lines]


def most_over(times: list[float], rate: float) -> float:
    """Return by how many the requests in any span of time exceed the rate."""
    # The largest of (j - i + 1) - rate * (t[j] - t[i]): one pass, with the best start so far.
    best, excess = float("-inf"), 0.0
    for place, moment in enumerate(times):
        best = max(best, rate * moment - place)
        excess = max(excess, place + 1 - rate * moment + best)
    return excess


async def test_processes_share_the_rate_and_a_pause(database) -> None:
    rate, each = 60.0, 6
    done = await asyncio.gather(take(database, rate, each), take(database, rate, each, pause_at=1))
    [paused] = [moment for lines in done for what, moment in lines if what == "pause"]
    times = sorted(moment for lines in done for what, moment in lines if what == "turn")
    assert len(times) == 2 * each * 8
    # Late turns are allowed: a process that is delayed may use the turns that it holds (a slice at most) at once.
    assert most_over(times, rate) <= 1 + 2 * int(rate * SLICE)
    # The other process may use what it had leased before the pause.
    assert len([moment for moment in times if paused < moment < paused + 1.4]) <= int(rate * SLICE)
    assert times[-1] > paused + 1.4


async def test_categories_have_separate_budgets(database) -> None:
    settings = Settings(postgres_dsn=database, requests_per_second=50)
    budget = shared(settings)
    await budget.pause(GET, 60)
    async with asyncio.timeout(30):
        await budget.turn(RUN)
    await budget.aclose()


async def test_process_uses_a_small_share_without_postgres(database) -> None:
    settings = Settings(postgres_dsn="postgresql://nobody@127.0.0.1:1/none", requests_per_second=100, budget_share=0.1)
    budget = shared(settings)
    began, times = time.monotonic(), []
    for _ in range(6):
        await budget.turn(GET)
        times.append(time.monotonic() - began)
    # A late turn may be followed by one on time, so count how many there were by then.
    assert all(time >= 0.1 * turn - 0.01 for turn, time in enumerate(times))
    await budget.aclose()


async def test_missing_table_counts_as_unavailable_until_it_returns(database) -> None:
    settings = Settings(postgres_dsn=database, requests_per_second=100)
    turns = SharedTurns(settings)
    connection = await asyncpg.connect(database)
    await connection.execute("alter table everyrun_queue.budgets rename to away")
    assert len(await turns.lease(GET, 10)) == 1
    await connection.execute("alter table everyrun_queue.away rename to budgets")
    deadline = time.monotonic() + 60
    while len(await turns.lease(GET, 10)) != 10:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await connection.close()
    await turns.aclose()


async def test_clock_set_back_delays_requests_only_for_a_while(database) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("insert into everyrun_queue.budgets values ('GET', now() + interval '10 days')")
    await connection.close()
    turns = SharedTurns(Settings(postgres_dsn=database))
    [wait] = await turns.lease(GET, 1)
    assert wait <= 3600
    await turns.aclose()
    assert isinstance(shared(Settings(postgres_dsn=database)), Budget)
