"""Polls and sweeps fetch and record runs, with a real Postgres and a fake Extend in the test's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest

from everyrun.extend.client import Extend
from everyrun.reconciler.polling import Polling
from everyrun.reconciler.run_fetcher import RunFetcher
from everyrun.reconciler.run_lists import RunLists
from everyrun.reconciler.sweeps import Sweeps
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from tests.integration.vendor import Vendor
from tests.memory_log import MemoryLog

pytestmark = pytest.mark.stack
WORKFLOW = "workflow_test"


class Bench:
    """The reconciler's parts over a fake Extend. ``restart`` replaces them, like a new process."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self.settings, self.pool = settings, pool
        self.vendor, self.log = Vendor(WORKFLOW), MemoryLog()
        self.hurried: list[str] = []
        self.patience = 0.0
        self.restart()

    def restart(self, vendor: Vendor | None = None, **settings: object) -> None:
        self.vendor = vendor or self.vendor
        self.settings = self.settings.model_copy(update=settings)
        extend = Extend(self.settings, httpx.MockTransport(lambda request: self.vendor.answer(request)))
        lists, gets = RunLists(extend), RunFetcher(self.pool, extend, self.log, first_wait=self.patience)
        self.polling = Polling(self.settings, self.pool, lists, gets)
        self.sweeps = Sweeps(self.settings, self.pool, lists, gets, self.hurried.append)

    async def batch(self, batch_id: str, state: str = "SUBMITTED", *, ago: float = 100.0, inputs: int = 1) -> None:
        """Insert an attempt, as the processor would, sent ``ago`` seconds ago."""
        at = datetime.now(UTC) - timedelta(seconds=ago)
        await self.pool.execute(
            "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state,"
            " requested_at, submitted_at, input_ids) values ($1, 1, $2, 's', $3, $4, $5, $6, $7, $8)",
            *(f"c-{batch_id}", batch_id if state in ("SUBMITTED", "SETTLED") else None, WORKFLOW, inputs, state, at),
            *(at if state in ("SUBMITTED", "SETTLED") else None, [f"s:{batch_id}-{n}" for n in range(inputs)]),
        )

        if state in ("IN_DOUBT", "SENDING"):
            await self.queued(f"c-{batch_id}", "in_doubt")

    async def queued(self, chunk: str, state: str, attempt: int = 1) -> None:
        """The chunk's row in the queue."""
        await self.pool.execute(
            "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, expected, batches,"
            " content_hash, created_at) values ('s', $1, 90, 1, 1, '', now()) on conflict do nothing",
            WORKFLOW,
        )
        await self.pool.execute(
            "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state, attempt)"
            " values ($1, 's', 0, 0, $2, $3) on conflict (chunk) do update set state = excluded.state",
            *(chunk, state, attempt),
        )

    async def row(self, run_id: str | None, status: str, batch_id: str, number: int = 0, *, ago: float = 50.0) -> None:
        """Insert an input's result that reached its status ``ago`` seconds ago."""
        at = datetime.now(UTC) + self.vendor.ahead - timedelta(seconds=ago)
        settled = None if status in ("SUBMITTED", "PROCESSING") else at
        await self.pool.execute(
            "insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt,"
            " file, metadata, run_id, status, settled_at, version)"
            " values ($1, $1, 's', $2, 0, $3, 1, '{}', '{}', $4, $5, $6, '')",
            *(f"s:{batch_id}-{number}", batch_id, f"c-{batch_id}", run_id, status, settled),
        )

    async def sweep(self) -> None:
        """Sweep what is due, however short ago and slow the last sweep of this process was."""
        self.sweeps._last.clear()
        await self.sweeps.sweep_due()

    async def swept(self) -> int:
        return await self.pool.fetchval("select count(*) from everyrun_queue.sweeps")

    async def gone(self) -> list[str]:
        return [r["run_id"] for r in await self.pool.fetch("select run_id from everyrun_queue.gone_runs order by 1")]


@pytest.fixture
async def bench(database) -> AsyncIterator[Bench]:
    settings = Settings(
        postgres_dsn=database, requests_per_second=10_000, poll_grace=0, sweep_every=1e-6, sweep_in_doubt_every=1e-6
    )
    pool = await open_pool(settings, name="test")
    yield Bench(settings, pool)
    pool.terminate()


async def test_sweep_finds_one_run_of_each_unknown_batch_and_is_recorded_as_complete(bench: Bench) -> None:
    await bench.batch("ours")
    await bench.batch("asked", "IN_DOUBT")
    for number in range(3):
        bench.vendor.run(f"new-{number}", "PENDING", "new")
    bench.vendor.run("ours-0", "PROCESSING", "ours")
    await bench.sweep()
    assert [run_id.partition("-")[0] for run_id in bench.log.subjects()] == ["new"]
    assert await bench.swept() == 1
    begun, complete = await bench.pool.fetchrow("select begun_at, complete_at from everyrun_queue.sweeps")
    assert begun <= complete
    # The processor has not applied it yet, but it is not fetched again.
    await bench.sweep()
    assert (len(bench.log.records), await bench.swept()) == (1, 2)


async def test_sweep_after_a_restart_starts_where_the_last_one_began(bench: Bench) -> None:
    bench.restart(Vendor(WORKFLOW, most=100))
    await bench.batch("ours", ago=9000)
    for number in range(350):
        bench.vendor.run(f"r-{number}", "PENDING", "ours", ago=1000 + number)
    await bench.sweep()
    # This Extend refused a thousand runs per page.
    assert [query["maxPageSize"] for query in bench.vendor.lists] == ["1000", "100", "100", "100", "100"]
    bench.restart()
    bench.vendor.lists.clear()
    await bench.sweep()
    assert [query["maxPageSize"] for query in bench.vendor.lists] == ["1000", "100"]


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
async def test_clock_difference_hides_no_run_and_costs_no_request(bench: Bench, ahead) -> None:
    bench.restart(Vendor(WORKFLOW, ahead=ahead, most=100))
    await bench.batch("ours", ago=9000)
    await bench.sweep()
    for number in range(350):
        bench.vendor.run(f"r-{number}", "PENDING", "ours" if number < 150 else "foreign", ago=number * 0.1)
    for number in range(350):
        bench.vendor.run(f"old-{number}", "PENDING", "ours", ago=1000 + number)
    bench.vendor.lists.clear()
    await bench.sweep()
    assert len(bench.log.records) == 1
    assert len([query for query in bench.vendor.lists if query["maxPageSize"] == "100"]) == 4


async def test_sweep_looks_back_to_before_a_call_in_doubt(bench: Bench) -> None:
    bench.restart(Vendor(WORKFLOW, most=100), sweep_every=3600)
    await bench.batch("ours", "SETTLED", ago=9000)
    await bench.sweep()
    for number in range(150):
        bench.vendor.run(f"r-{number}", "PENDING", "ours", ago=10)
    # It was listed long after it was made, with the time of its creation.
    bench.vendor.run("late", "PENDING", "lost", ago=600)
    await bench.sweep()
    assert bench.log.records == []
    await bench.batch("asked", "IN_DOUBT", ago=500)
    await bench.sweep()
    assert bench.log.subjects() == ["late"]


async def test_sweep_looks_for_an_attempt_known_only_as_in_doubt(bench: Bench) -> None:
    # Its worker was killed before the log had batch-requested, so the workflow and the time of the call are unknown.
    bench.restart(sweep_every=3600)
    await bench.pool.execute(
        "insert into everyrun.submissions (submission_id, workflow_id, expected, created_at)"
        " values ('s', $1, 1, now())",
        WORKFLOW,
    )
    await bench.pool.execute(
        "insert into everyrun.batches (chunk, attempt, submission_id, expected, state, in_doubt_at, input_ids)"
        " values ('c-1', 1, 's', 1, 'IN_DOUBT', now() - interval '5 s', '{}')"
    )
    await bench.queued("c-1", "in_doubt")
    for complete in (1, 2):
        await bench.sweep()
        assert await bench.swept() == complete


async def test_sweep_finds_changes_of_settled_runs(bench: Bench) -> None:
    await bench.batch("done", "SETTLED", inputs=4)
    for number, status in enumerate(("FAILED", "FAILED", "FAILED", "PROCESSED")):
        await bench.row(f"r-{number}", status, "done", number)
    bench.vendor.run("r-0", "PROCESSED", "done")  # it ran again and succeeded
    bench.vendor.run("r-1", "FAILED", "done")  # it ran again and failed again
    bench.vendor.run("r-2", "FAILED", "done", ago=60)
    bench.vendor.run("r-3", "PROCESSED", "done", ago=60)
    await bench.sweep()
    assert bench.log.subjects() == ["r-0", "r-1"]
    await bench.sweep()
    assert sorted(bench.vendor.gets) == ["r-0", "r-1"]


async def test_ended_review_makes_the_poll_of_its_batch_due(bench: Bench) -> None:
    await bench.batch("open", ago=5 * 86_400)
    await bench.row("r", "NEEDS_REVIEW", "open", ago=4 * 86_400 - 1)
    bench.vendor.run("r", "NEEDS_REVIEW", "open", ago=4 * 86_400)
    await bench.polling.poll_due()
    await bench.sweep()
    assert (bench.vendor.gets, bench.hurried) == ([], [])
    bench.vendor.run("r", "PROCESSED", "open")
    await bench.sweep()
    # The poll fetches it, so that it is fetched once.
    assert (bench.vendor.gets, bench.hurried) == ([], ["open"])
    lists = len(bench.vendor.lists)
    await bench.polling.poll_due()
    assert len(bench.vendor.lists) == lists
    bench.polling.hurry("open")
    await bench.polling.poll_due()
    assert bench.log.subjects() == ["r"]


@pytest.mark.parametrize("status", [403, 418])
async def test_sweep_is_incomplete_while_a_batch_of_a_call_in_doubt_may_be_unfetched(bench: Bench, status: int) -> None:
    await bench.batch("asked", "IN_DOUBT", ago=500)
    for number in range(2):
        bench.vendor.run(f"new-{number}", "PENDING", "new", ago=400)
        bench.vendor.refused[f"new-{number}"] = status
    for _ in range(5):
        await bench.sweep()
    assert (bench.log.subjects(), await bench.swept()) == ([], 0)
    bench.vendor.refused.clear()
    await bench.sweep()
    assert (len(bench.log.subjects()), await bench.swept()) == (1, 1)


async def test_batch_that_can_never_be_fetched_does_not_block_later_calls(bench: Bench) -> None:
    bench.restart(sweep_margin=10)
    bench.vendor.run("foreign", "PENDING", "foreign", ago=600)
    bench.vendor.refused["foreign"] = 403
    # Each sweep lists it, and no call in doubt can have made it.
    await bench.batch("ours", ago=1000)
    await bench.batch("asked", "IN_DOUBT", ago=500)
    for complete in (1, 2, 3):
        await bench.pool.execute("update everyrun_queue.sweeps set begun_at = begun_at - interval '1000 s'")
        await bench.sweep()
        assert await bench.swept() == complete
    # An earlier attempt that was given up is in doubt for as long as its chunk is.
    await bench.pool.execute(
        "insert into everyrun.batches (chunk, attempt, submission_id, workflow_id, expected, state, requested_at,"
        " input_ids) values ('c-asked', 0, 's', $1, 1, 'RESENT', now() - interval '700 s', '{}')",
        WORKFLOW,
    )
    await bench.pool.execute("update everyrun_queue.sweeps set begun_at = begun_at - interval '1000 s'")
    await bench.sweep()
    assert await bench.swept() == 3


async def test_sweep_is_incomplete_while_only_the_queue_has_a_call_in_doubt(bench: Bench) -> None:
    bench.restart(sweep_margin=10)
    await bench.batch("ours", ago=1000)
    bench.vendor.run("foreign", "PENDING", "foreign", ago=600)
    bench.vendor.refused["foreign"] = 403
    await bench.queued("c-new", "in_doubt")
    await bench.sweep()
    assert await bench.swept() == 0
    await bench.batch("new", "IN_DOUBT", ago=500)  # the processor has applied it
    await bench.sweep()
    assert await bench.swept() == 1


async def test_sweep_fetches_another_run_of_an_unknown_batch_if_one_is_unavailable(bench: Bench) -> None:
    await bench.batch("asked", "IN_DOUBT")
    for number in range(10):
        bench.vendor.run(f"new-{number}", "PENDING", "new", ago=number)
    bench.vendor.refused.update({f"new-{number}": 403 for number in range(4)})
    await bench.sweep()
    # A sweep tries a few runs, and the next sweep tries others.
    assert (bench.vendor.gets, await bench.swept()) == (["new-0", "new-1", "new-2"], 0)
    await bench.sweep()
    assert (bench.log.subjects(), await bench.swept()) == (["new-4"], 1)


async def test_unavailable_run_of_a_known_batch_leaves_the_sweep_complete(bench: Bench) -> None:
    bench.restart(Vendor(WORKFLOW, most=100))
    await bench.batch("done", "SETTLED", ago=9000)
    await bench.batch("asked", "IN_DOUBT", ago=500)
    await bench.row("r", "FAILED", "done", ago=5000)
    bench.vendor.run("r", "PROCESSED", "done", ago=200)
    bench.vendor.refused["r"] = 403
    for complete in (1, 2):
        await bench.sweep()
        assert await bench.swept() == complete
    # The list no longer shows it, but another process finds it in the database.
    await bench.pool.execute("update everyrun.batches set state = 'RESENT' where state = 'IN_DOUBT'")
    bench.restart()
    for number in range(150):
        bench.vendor.run(f"new-{number}", "PENDING", "done")
    bench.vendor.refused.clear()
    await bench.sweep()
    assert (bench.log.subjects(), await bench.gone()) == (["r"], [])


async def test_run_that_can_never_be_fetched_is_requested_at_growing_intervals(bench: Bench) -> None:
    bench.patience = 3600.0
    bench.restart()
    await bench.batch("open")
    await bench.batch("done", "SETTLED")
    for batch_id in ("open", "done", "unknown"):
        bench.vendor.run(batch_id, "PROCESSED", batch_id)
        bench.vendor.refused[batch_id] = 403
    for _ in range(5):
        await bench.sweep()
        await bench.polling.poll("open", 1)
    assert sorted(bench.vendor.gets) == ["done", "open", "unknown"]


async def test_run_is_gone_if_extend_answers_410(bench: Bench) -> None:
    await bench.batch("asked", "IN_DOUBT")
    bench.vendor.run("new", "PENDING", "new")
    bench.vendor.refused["new"] = 410
    await bench.sweep()
    assert (await bench.gone(), await bench.swept()) == (["new"], 1)


async def test_workflows_are_not_read_at_every_turn(bench: Bench) -> None:
    bench.restart(sweep_every=300.0, sweep_in_doubt_every=15.0)
    await bench.sweep()
    await bench.batch("ours")
    await bench.sweep()
    assert (bench.vendor.lists, await bench.swept()) == ([], 0)
    bench.sweeps._looked_at -= 10.0
    await bench.sweep()
    assert await bench.swept() == 1


async def test_batch_hurried_during_its_poll_is_polled_again(bench: Bench) -> None:
    bench.restart(poll_every=3600.0)
    await bench.batch("open")
    answer = bench.vendor.answer

    def changing(request: httpx.Request) -> httpx.Response:
        bench.vendor.answer = answer
        bench.polling.hurry("open")
        return answer(request)

    bench.vendor.answer = changing
    for lists in (1, 2, 2):
        await bench.polling.poll_due()
        assert len(bench.vendor.lists) == lists


async def test_sweep_completes_once_a_run_can_be_fetched(bench: Bench) -> None:
    await bench.batch("ours")
    bench.vendor.run("new", "PENDING", "new")
    bench.vendor.refused["new"] = 403
    await bench.sweep()
    assert await bench.swept() == 0
    bench.vendor.refused.clear()
    await bench.sweep()
    assert (bench.log.subjects(), await bench.swept()) == (["new"], 1)


async def test_sweep_fetches_the_next_run_of_an_unknown_batch_if_one_is_gone(bench: Bench) -> None:
    await bench.batch("ours")
    for number in range(3):
        bench.vendor.run(f"new-{number}", "PENDING", "new", ago=number)
    bench.vendor.deleted |= {"new-0", "new-1"}
    await bench.sweep()
    assert (bench.log.subjects(), await bench.gone(), await bench.swept()) == (["new-2"], ["new-0", "new-1"], 1)


async def test_deleted_runs_are_recorded_and_forgotten_if_they_return(bench: Bench) -> None:
    await bench.batch("b", inputs=3)
    await bench.row("told", "NEEDS_REVIEW", "b", 0)
    await bench.row(None, "SUBMITTED", "b", 1)
    bench.vendor.run("listed", "PROCESSED", "b")
    bench.vendor.run("running", "PROCESSING", "b")
    bench.vendor.deleted.add("listed")
    await bench.polling.poll("b", 3)
    # One is listed and cannot be fetched. The other was applied once, and is no longer listed.
    assert await bench.gone() == ["listed", "told"]
    polled = await bench.pool.fetchrow("select listed, running from everyrun_queue.polls where batch_id = 'b'")
    assert tuple(polled) == (2, 1)
    await bench.polling.poll("b", 3)
    assert sorted(bench.vendor.gets) == ["listed", "told"]
    bench.vendor.run("told", "NEEDS_REVIEW", "b", ago=60)
    await bench.polling.poll("b", 3)
    assert await bench.gone() == ["listed"]


async def test_runs_in_progress_are_fetched_if_an_overdue_batch_lists_too_few(bench: Bench) -> None:
    await bench.batch("b", inputs=2)
    bench.vendor.run("running", "PROCESSING", "b")
    await bench.polling.poll("b", 2)
    await bench.polling.poll("b", 1, overdue=True)
    assert bench.vendor.gets == []
    await bench.polling.poll("b", 2, overdue=True)
    assert bench.log.subjects() == ["running"]


async def test_run_that_just_ended_is_left_to_its_webhook(bench: Bench) -> None:
    bench.restart(poll_grace=60)
    await bench.batch("b")
    bench.vendor.run("r", "PROCESSED", "b", ago=5)
    assert (await bench.polling.poll("b", 1)).found == 0
    bench.vendor.run("r", "PROCESSED", "b", ago=65)
    assert (await bench.polling.poll("b", 1)).found == 1


async def test_batches_are_polled_between_the_ages_set_and_not_at_once_after_a_restart(bench: Bench) -> None:
    bench.restart(poll_first_after=60, poll_for=1000, poll_every=500)
    for name, ago in (("young", 30), ("open", 100), ("old", 2000)):
        await bench.batch(name, ago=ago)
    await bench.polling.poll_due()
    assert [query["batchId"] for query in bench.vendor.lists] == ["open"]
    bench.restart()
    await bench.polling.poll_due()
    assert len(bench.vendor.lists) == 1
    bench.restart(poll_every=1e-9)
    await bench.polling.poll_due()
    assert len(bench.vendor.lists) == 2


async def test_batch_without_listed_runs_is_polled_without_an_error(bench: Bench) -> None:
    await bench.batch("b", inputs=2)
    await bench.row(None, "SUBMITTED", "b", 0)
    await bench.row(None, "SUBMITTED", "b", 1)
    assert (await bench.polling.poll("b", 2)).found == 0
    # Nothing is fetched: an input without a run does not count as a run that is missing in the list.
    assert (bench.vendor.gets, bench.log.subjects(), await bench.gone()) == ([], [], [])
