"""Cost of polls and sweeps: it does not grow with the batches sent, or with those that wait for a person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from everyrun.extend.client import ExtendError
from everyrun.reconciler import polling, sweeps
from everyrun.store.pool import SlowStatementError
from tests.integration.costs import pages, settled
from tests.integration.test_sweeps import WORKFLOW, Bench, bench
from tests.integration.vendor import Vendor

pytestmark = pytest.mark.stack
__all__ = ["bench"]
DAY = 86_400.0


async def many(connection: asyncpg.Connection, size: int, state: str) -> None:
    """Insert batches of three workflows, sent over the last 20 days, with two calls in doubt."""
    await connection.execute("truncate everyrun.batches, everyrun_queue.submissions cascade")
    await connection.execute("truncate everyrun_queue.polls")
    await connection.execute(
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state,"
        " requested_at, submitted_at, counts, input_ids) select 'c' || n, 1, 'b' || n, 's' || n, 'w' || n % 3, 2, $2,"
        " t.at, t.at, '{\"PROCESSED\": 1, \"NEEDS_REVIEW\": 1}', '{a,b}'"
        " from generate_series(1, $1) n, lateral (select now() - interval '1 day'"
        " - n * interval '19 days' / $1::float8 as at) t",
        *(size, state),
    )
    await connection.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, expected, batches, content_hash,"
        " created_at) select 's' || n, 'w' || n % 3, 2, 1, '', now() from generate_series(1, $1) n",
        size,
    )
    await connection.execute(
        "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state)"
        " select 'c' || n, 's' || n, 1, 2, case when n < 3 then 'in_doubt' else 'submitted' end"
        " from generate_series(1, $1) n",
        size,
    )
    await connection.execute(
        "update everyrun.batches set state = 'IN_DOUBT', batch_id = null where chunk in ('c1', 'c2')"
    )
    await connection.execute(
        "insert into everyrun_queue.polls (batch_id, complete_at, listed, running)"
        " select batch_id, now(), 2, 0 from everyrun.batches where batch_id is not null"
    )
    tables = ("everyrun.batches", "everyrun_queue.submissions", "everyrun_queue.chunks", "everyrun_queue.polls")
    await settled(connection, *tables)


async def test_finding_workflows_to_sweep_costs_the_same_for_any_number_of_batches(database: str) -> None:
    connection = await asyncpg.connect(database)
    costs = []
    for size in (1000, 20_000):
        await many(connection, size, "SETTLED")
        arguments = [30 * DAY, None] if "$2" in sweeps._sql["workflows"] else [30 * DAY]
        rows = await connection.fetch(sweeps._sql["workflows"], *arguments)
        assert [row["workflow_id"] for row in rows] == ["w0", "w1", "w2"]
        assert [row["doubt_since"] is None for row in rows] == [True, False, False]
        costs.append(await pages(connection, sweeps._sql["workflows"], *arguments))
    await connection.close()
    assert 0 < costs[1] <= 2 * costs[0], costs


async def test_batches_that_wait_for_a_person_are_not_read_every_second(database: str) -> None:
    connection = await asyncpg.connect(database)
    costs = []
    for size in (1000, 20_000):
        await many(connection, size, "SUBMITTED")
        lately = [datetime.now(UTC) - timedelta(seconds=120)] if "$3" in polling._sql["open_batches"] else []
        costs.append(await pages(connection, polling._sql["open_batches"], 60.0, 30 * DAY, *lately))
    await connection.close()
    assert costs[1] <= 2 * max(costs[0], 5), costs


@pytest.mark.parametrize("why", ["review", "gone"])
async def test_batch_that_only_waits_for_a_person_is_polled_at_growing_intervals(bench: Bench, why: str) -> None:
    bench.restart(poll_every=1e-9)
    await bench.batch("b", ago=10 * 3600, inputs=2)
    await bench.row("done", "PROCESSED", "b", 0, ago=9 * 3600 - 1)
    bench.vendor.run("done", "PROCESSED", "b", ago=9 * 3600)
    await bench.row("other", "NEEDS_REVIEW" if why == "review" else "PROCESSING", "b", 1, ago=9 * 3600 - 1)
    if why == "review":
        bench.vendor.run("other", "NEEDS_REVIEW", "b", ago=9 * 3600)
    await bench.polling.poll_due()
    if why == "gone":
        # It was applied once and is no longer listed, so it is fetched and found to be gone.
        assert await bench.gone() == ["other"]
    due = await bench.pool.fetchval("select extract(epoch from due_at - now()) from everyrun_queue.polls")
    assert 5 * 3600 - 60 < due < 6 * 3600 + 60
    assert await bench.pool.fetchval("select next_at = due_at from everyrun_queue.polls")
    # This also holds after a restart.
    lists = len(bench.vendor.lists)
    bench.restart()
    await bench.polling.poll_due()
    assert len(bench.vendor.lists) == lists
    # A batch in which a sweep finds a change is polled at once.
    bench.polling.hurry("b")
    await bench.polling.poll_due()
    assert len(bench.vendor.lists) == lists + 1


async def test_next_poll_of_a_batch_is_saved_even_after_a_failed_poll(bench: Bench) -> None:
    """The API shows the time of the next poll, so it must be saved after every poll."""
    seconds = "select extract(epoch from next_at - now())::float8 from everyrun_queue.polls"
    bench.restart(poll_every=1000.0)
    await bench.batch("b", ago=10 * 3600, inputs=2)
    await bench.row("done", "PROCESSED", "b", 0, ago=60)
    bench.vendor.run("done", "PROCESSED", "b", ago=60)
    await bench.polling.poll_due()
    assert 990 < await bench.pool.fetchval(seconds) <= 1800 * 1.2
    await bench.pool.execute("update everyrun_queue.polls set next_at = null")

    async def away(**_: object) -> AsyncIterator[object]:
        raise ExtendError(503, "UNREADABLE", "bad gateway")
        yield

    bench.polling._lists.pages = away
    bench.polling.hurry("b")
    await bench.polling.poll_due()
    assert 990 < await bench.pool.fetchval(seconds) <= 1000 * 1.2


async def test_batch_applied_late_is_polled_and_settled_batch_is_not(bench: Bench) -> None:
    bench.restart(poll_every=1e-9)
    await bench.batch("first")
    await bench.polling.poll_due()
    await bench.batch("late", ago=3 * 3600)
    await bench.batch("next", ago=90)
    await bench.pool.execute("update everyrun.batches set state = 'SETTLED' where batch_id = 'first'")
    bench.vendor.lists.clear()
    await bench.polling.poll_due()
    assert [query["batchId"] for query in bench.vendor.lists] == ["next"]
    bench.polling._looked_at_all -= polling._LOOK_AT_ALL_EVERY
    await bench.polling.poll_due()
    assert sorted(query["batchId"] for query in bench.vendor.lists) == ["late", "next"]


def back_to(bench: Bench) -> int:
    """Return how many pages the last sweep read."""
    pages = len([query for query in bench.vendor.lists if query["maxPageSize"] == "100"])
    bench.vendor.lists.clear()
    return pages


@pytest.mark.parametrize("queued", ["held", None])
async def test_sweeps_look_back_for_a_held_call_at_growing_intervals(bench: Bench, queued: str | None) -> None:
    bench.restart(Vendor(WORKFLOW, most=100))
    await bench.batch("ours", "SETTLED", ago=9000)
    await bench.sweep()
    await bench.batch("asked", "IN_DOUBT", ago=4000)
    if queued is None:
        await bench.pool.execute("delete from everyrun_queue.chunks")
    else:
        await bench.queued("c-asked", queued)
    await bench.pool.execute("update everyrun.batches set in_doubt_at = requested_at where state = 'IN_DOUBT'")
    for number in range(450):
        bench.vendor.run(f"r-{number}", "PENDING", "ours", ago=1000 + number)
    bench.vendor.lists.clear()

    async def sweep() -> int:
        bench.sweeps._looked_at = float("-inf")
        await bench.sweep()
        return back_to(bench)

    # It is not swept every fifteen seconds, but with the workflow's regular sweep.
    (row,) = await bench.pool.fetch(sweeps._sql["workflows"], 30 * DAY, None)
    assert row["doubt_since"] is None
    assert await sweep() == 5
    assert [await sweep() for _ in range(3)] == [1, 1, 1]
    # The wait is as long as it has been in doubt.
    for call in bench.sweeps._looked_back:
        bench.sweeps._looked_back[call] -= 4100
    assert [await sweep() for _ in range(2)] == [5, 1]
    # A person has it resent, and that call is in doubt, so every sweep looks back to it.
    await bench.queued("c-asked", "in_doubt")
    assert [await sweep() for _ in range(3)] == [5, 5, 5]


async def test_slow_statement_fails_only_one_batch_and_one_workflow(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.restart(poll_every=1e-9)
    await bench.batch("slow", ago=200)
    await bench.batch("other")
    for batch_id in ("slow", "other"):
        bench.vendor.run(f"r-{batch_id}", "PROCESSED", batch_id)
    known = bench.polling._fetcher.known

    async def slowly(run_ids):
        if "r-slow" in run_ids:
            raise SlowStatementError("known_runs")
        return await known(run_ids)

    monkeypatch.setattr(bench.polling._fetcher, "known", slowly)
    await bench.polling.poll_due()
    assert bench.log.subjects() == ["r-other"]
    await bench.sweep()
    assert await bench.swept() == 0
    monkeypatch.undo()
    await bench.polling.poll_due()
    await bench.sweep()
    assert (bench.log.subjects(), await bench.swept()) == (["r-other", "r-slow"], 1)
