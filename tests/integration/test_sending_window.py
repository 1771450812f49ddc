"""The sending window: no claim exceeds it, settled inputs make room, and submissions take fair turns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest

from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.submission.dispatch.dispatcher import _sql
from everyrun.submission.recovery.queue_recovery import _sql as _recovery_sql
from everyrun.submission.settled_inputs import SettledInputs
from tests.integration.costs import pages

pytestmark = pytest.mark.stack
CHUNKS, LOADS = "everyrun_queue.chunks", "everyrun_queue.submission_loads"
OPEN = f"select coalesce(sum(open_inputs), 0) from {CHUNKS}"


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database, min_size=2, max_size=10) as pool:
        yield pool


async def submission(
    pool: asyncpg.Pool,
    name: str,
    chunks: int,
    size: int = 10,
    *,
    workflow: str = "w",
    priority: int = 90,
    max_open: int | None = None,
) -> None:
    """Insert an announced submission with this number of chunks of ``size`` inputs each."""
    await pool.execute(
        "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, max_open_inputs, expected,"
        " batches, content_hash, created_at, announced_at) values ($1, $2, $3, $4, $5, $6, '', now(), now())",
        *(name, workflow, priority, max_open, chunks * size, chunks),
    )
    await pool.execute(
        f"insert into {CHUNKS} (chunk, submission_id, first_position, last_position)"
        " select $1 || '.c' || lpad(n::text, 5, '0'), $1, (n - 1) * $3::int + 1, n * $3 from generate_series(1, $2) n",
        *(name, chunks, size),
    )


async def claim(pool: asyncpg.Pool, window: int) -> str | None:
    incarnation = await pool.fetchval(_recovery_sql["incarnation"])
    return await pool.fetchval(_sql["claim"], "me", 60.0, incarnation, window)


async def claims(pool: asyncpg.Pool, window: int) -> list[str]:
    """Claim until nothing can be claimed."""
    found = []
    while (chunk := await claim(pool, window)) is not None:
        found.append(chunk)
    return found


async def accepted(pool: asyncpg.Pool, chunk: str, counts: str) -> None:
    """Have Extend accept a chunk, and the result tables show the inputs by status."""
    await pool.execute(f"update {CHUNKS} set state = 'submitted', batch_id = $1 where chunk = $1", chunk)
    await pool.execute(
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state,"
        " submitted_at, input_ids, counts) select chunk, 1, chunk, submission_id, 'w',"
        f" last_position - first_position + 1, 'SUBMITTED', now(), '{{}}', $2::text::jsonb from {CHUNKS}"
        " where chunk = $1 on conflict (chunk, attempt) do update set counts = excluded.counts",
        *(chunk, counts),
    )


async def count_settled(pool: asyncpg.Pool) -> int:
    return await pool.fetchval("select everyrun_queue.count_settled(1e6)")


async def something_waits(pool: asyncpg.Pool, window: int) -> bool:
    return await pool.fetchval(_sql["something_waits"], window)


async def test_concurrent_claims_never_exceed_the_window(database: str) -> None:
    """Two processes with four workers each claim chunks, which settle at random, until all are settled."""
    window, chance = 45, random.Random(5)
    async with asyncpg.create_pool(database) as first, asyncpg.create_pool(database) as second:
        for number in range(6):
            await submission(first, f"s{number}", 5, size=chance.choice((3, 10, 20)))
        left, most = 30, 0

        async def work(pool: asyncpg.Pool) -> None:
            nonlocal left, most
            while left:
                chunk = await claim(pool, window)
                most = max(most, await pool.fetchval(OPEN))
                if chunk is None:
                    await asyncio.sleep(0)
                    continue
                end = chance.choice(("submitted", "refused", "waiting", "in_doubt", "submitted"))
                await asyncio.sleep(chance.random() / 100)
                if end == "waiting":
                    await pool.execute(
                        f"update {CHUNKS} set state = 'waiting', not_before = now() where chunk = $1", chunk
                    )
                    continue
                await pool.execute(f"update {CHUNKS} set state = $2 where chunk = $1", chunk, end)
                left -= 1
                await asyncio.sleep(chance.random() / 100)
                settled = f"update {CHUNKS} set state = 'submitted', settled = last_position where chunk = $1"
                await pool.execute(settled, chunk)

        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(work(first if number % 2 else second))
        assert 30 <= most <= window
        assert await first.fetchval(OPEN) == 0
        assert not await something_waits(first, window)


async def test_settled_inputs_make_room(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 10)
    assert await claims(pool, 25) == ["a.c00001", "a.c00002"]
    assert not await something_waits(pool, 25)
    await accepted(pool, "a.c00001", '{"PROCESSING": 6, "PROCESSED": 3, "FAILED": 1}')
    assert await count_settled(pool) == 1
    # 16 inputs are open, and 10 more do not fit.
    assert not await something_waits(pool, 25)
    await accepted(pool, "a.c00001", '{"NEEDS_REVIEW": 5, "PROCESSED": 3, "FAILED": 2}')
    assert await count_settled(pool) == 1
    assert await something_waits(pool, 25)
    assert await claims(pool, 25) == ["a.c00003"]
    # Without a window, all are sent.
    assert len(await claims(pool, 0)) == 7


async def test_the_count_survives_the_loss_of_the_result_tables(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 4)
    assert await claims(pool, 20) == ["a.c00001", "a.c00002"]
    await accepted(pool, "a.c00001", '{"PROCESSED": 10}')
    await accepted(pool, "a.c00002", '{"PROCESSED": 4, "PROCESSING": 6}')
    assert await count_settled(pool) == 2
    await pool.execute("alter schema everyrun rename to lost")
    assert await count_settled(pool) == 0
    assert await claims(pool, 20) == ["a.c00003"]
    await pool.execute("alter schema lost rename to everyrun")
    # Rebuilt tables know less for a while.
    await accepted(pool, "a.c00002", '{"SUBMITTED": 10}')
    assert await count_settled(pool) == 0
    assert not await something_waits(pool, 20)
    await accepted(pool, "a.c00002", '{"PROCESSED": 10}')
    assert await count_settled(pool) == 1
    assert await claims(pool, 20) == ["a.c00004"]


async def test_runs_that_will_never_end_make_room(pool: asyncpg.Pool) -> None:
    """A run that was deleted at Extend is not open, nor an input that a complete list of its batch lacks."""
    await submission(pool, "a", 2)
    assert await claims(pool, 10) == ["a.c00001"]
    await accepted(pool, "a.c00001", '{"PROCESSED": 7, "PROCESSING": 1, "SUBMITTED": 2}')
    await pool.execute(
        "insert into everyrun.results (input_id, external_id, submission_id, position, chunk, attempt, file, metadata,"
        " run_id, status, version) values ('a:1', '1', 'a', 1, 'a.c00001', 1, '{}', '{}', 'run_1', 'PROCESSING', '')"
    )
    await pool.execute("insert into everyrun_queue.gone_runs values ('run_1', 'a.c00001', now())")
    await pool.execute("insert into everyrun_queue.polls values ('a.c00001', now(), 8, 0)")
    await count_settled(pool)
    assert await pool.fetchval(OPEN) == 2
    await pool.execute("update everyrun.batches set submitted_at = now() - interval '2 hours'")
    await count_settled(pool)
    assert await pool.fetchval(OPEN) == 0


async def test_a_chunk_larger_than_the_window_is_sent_alone(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 2, size=100)
    assert await claims(pool, 20) == ["a.c00001"]
    await pool.execute(f"update {CHUNKS} set state = 'submitted', settled = 99 where chunk = 'a.c00001'")
    assert not await something_waits(pool, 20)
    await pool.execute(f"update {CHUNKS} set settled = 100 where chunk = 'a.c00001'")
    assert await claims(pool, 20) == ["a.c00002"]


async def test_a_submission_can_have_a_window_of_its_own(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 3, max_open=15)
    await submission(pool, "b", 2)
    assert sorted(await claims(pool, 0)) == ["a.c00001", "b.c00001", "b.c00002"]
    assert not await something_waits(pool, 0)
    row = await pool.fetchrow(
        "select waits_for, detail, sum(inputs) from everyrun_queue.unsent('a') where status = 'WAITING' group by 1, 2"
    )
    assert tuple(row) == ("sending_window", "15 inputs of the submission", 20)


async def test_what_waits_for_the_window_is_shown(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 4)
    assert len(await claims(pool, 20)) == 2
    assert not await something_waits(pool, 20)
    rows = await pool.fetch("select chunk, waits_for, detail from everyrun_queue.unsent('a') where status = 'WAITING'")
    assert {tuple(row) for row in rows} == {
        ("a.c00003", "sending_window", "20 inputs of the workflow"),
        ("a.c00004", "sending_window", "20 inputs of the workflow"),
    }


async def test_windows_are_per_workflow(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 3)
    await submission(pool, "b", 3, workflow="other")
    assert sorted(await claims(pool, 20)) == ["a.c00001", "a.c00002", "b.c00001", "b.c00002"]


async def test_submissions_take_fair_turns(pool: asyncpg.Pool) -> None:
    """Lower priority numbers are first. Among equals, the submission with the fewest open inputs is first."""
    await submission(pool, "huge", 100)
    for _ in range(5):
        await claim(pool, 0)
    await submission(pool, "small", 2)
    await submission(pool, "urgent", 2, priority=1)
    assert [await claim(pool, 0) for _ in range(5)] == [
        "urgent.c00001",
        "urgent.c00002",
        "small.c00001",
        "small.c00002",
        "huge.c00006",
    ]


async def test_the_loads_follow_from_the_chunks(pool: asyncpg.Pool) -> None:
    """After any changes, in any statements, the loads are the sums over the chunks."""
    chance = random.Random(11)
    states = ("waiting", "sending", "in_doubt", "held", "submitted", "refused", "cut")
    for number in range(5):
        await submission(pool, f"s{number}", 6, workflow=f"w{number % 2}")
    for _ in range(60):
        names = [f"s{chance.randrange(5)}.c{chance.randrange(1, 7):05d}" for _ in range(chance.randrange(1, 5))]
        change = chance.choice(
            (
                f"state = '{chance.choice(states)}'",
                f"settled = {chance.randrange(12)}",
                f"skipped = {chance.choice(('true', 'false'))}",
                f"files_lost = {chance.choice(('true', 'false'))}",
                f"not_before = {chance.choice(('now()', repr('-infinity'), repr('infinity')))}",
            )
        )
        await pool.execute(f"update {CHUNKS} set {change} where chunk = any ($1)", names)
        if chance.random() < 0.1:
            await pool.execute(f"delete from {CHUNKS} where chunk = $1", names[0])
        if chance.random() < 0.5:
            await claim(pool, chance.choice((0, 5, 40)))
    await something_waits(pool, 0)
    truth = await pool.fetch(
        f"select submission_id, sum(ready::int) as ready, sum(open_inputs) as open from {CHUNKS} group by 1"
        " having sum(ready::int) > 0 or sum(open_inputs) > 0 order by 1"
    )
    kept = await pool.fetch(f"select submission_id, ready_chunks as ready, open_inputs as open from {LOADS} order by 1")
    assert [tuple(row) for row in kept] == [tuple(row) for row in truth] != []
    truth = await pool.fetch(
        f"select workflow_id, sum(ready::int), sum(open_inputs) from {CHUNKS} join everyrun_queue.submissions"
        " using (submission_id) group by 1 order by 1"
    )
    kept = await pool.fetch(
        "select workflow_id, ready_chunks, open_inputs from everyrun_queue.workflow_loads order by 1"
    )
    assert [tuple(row) for row in kept] == [tuple(row) for row in truth]


@pytest.mark.parametrize("full", [True, False])
async def test_the_cost_of_a_claim_does_not_depend_on_the_number_of_submissions(pool: asyncpg.Pool, full: bool) -> None:
    window, costs = (30 if full else 0), []
    async with pool.acquire() as connection:
        incarnation = await connection.fetchval(_recovery_sql["incarnation"])
        for many in (20, 1000):
            await connection.execute(f"truncate {CHUNKS}, everyrun_queue.submissions cascade")
            await connection.execute(
                "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, expected, batches,"
                " content_hash, created_at, announced_at)"
                " select 's' || n, 'w', 90, 20, 2, '', now(), now() from generate_series(1, $1) n",
                many,
            )
            await connection.execute(
                f"insert into {CHUNKS} (chunk, submission_id, first_position, last_position)"
                " select s.submission_id || '.c' || n, s.submission_id, n * 10, n * 10 + 9"
                " from everyrun_queue.submissions s, generate_series(1, 2) n"
            )
            for _ in range(5):
                await claim(pool, window)
            for table in (CHUNKS, LOADS, "everyrun_queue.workflow_loads", "everyrun_queue.load_changes"):
                await connection.execute(f"vacuum analyze {table}")
            statement, values = _sql["claim"], ("me", 60.0, incarnation, window)
            costs.append([await pages(connection, statement, *values) for _ in range(6)][-1])
    assert 0 < costs[1] <= 2 * costs[0], costs


async def test_settled_inputs_are_counted_at_once_if_chunks_wait_and_seldom_if_not(pool: asyncpg.Pool) -> None:
    wake = asyncio.Event()
    counter = SettledInputs(Settings(), pool, wake)
    await submission(pool, "a", 2)
    assert await claims(pool, 10) == ["a.c00001"]
    assert not await something_waits(pool, 10)
    await counter.count()
    await accepted(pool, "a.c00001", '{"PROCESSED": 10}')

    async def counted() -> None:
        while not await counter.count():
            await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        await counted()
    assert wake.is_set()
    assert await claims(pool, 10) == ["a.c00002"]
    assert not await something_waits(pool, 10)
    # Nothing waits: the next count is not due yet.
    await accepted(pool, "a.c00002", '{"PROCESSED": 10}')
    assert await counter.count() == 0


async def test_samples_and_credits_are_kept_for_the_estimate(pool: asyncpg.Pool) -> None:
    await submission(pool, "a", 2, size=2)
    await claims(pool, 0)
    for number, chunk in enumerate(("a.c00001", "a.c00002")):
        await accepted(pool, chunk, '{"PROCESSED": 2}' if number == 0 else '{"PROCESSED": 1, "PROCESSING": 1}')
        ids = [f"a:{number * 2 + 1}", f"a:{number * 2 + 2}"]
        await pool.execute("update everyrun.batches set input_ids = $2 where chunk = $1", chunk, ids)
        await pool.execute(
            "insert into everyrun.results (input_id, external_id, submission_id, position, chunk, attempt, file,"
            " metadata, run_id, status, credits, version)"
            " select id, id, 'a', 1, $1, 1, '{}', '{}', id, 'PROCESSED', 1.5, '' from unnest($2::text[]) id",
            *(chunk, ids),
        )
    await pool.execute("update everyrun.batches set state = 'SETTLED' where chunk = 'a.c00001'")
    await something_waits(pool, 0)
    assert await count_settled(pool) == 2
    assert await count_settled(pool) == 0
    rows = await pool.fetch(f"select chunk, credits from {CHUNKS} order by chunk")
    assert [tuple(row) for row in rows] == [("a.c00001", 3.0), ("a.c00002", None)]
    rows = await pool.fetch("select submission_id, settled from everyrun_queue.settled_samples")
    assert [tuple(row) for row in rows] == [("a", 3)], "one sample in 15 seconds"
    app = query_api(Settings(api_token="t" * 20), pool)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://q", headers={"authorization": "Bearer " + "t" * 20}
    ) as http:
        answer = await http.get("/v1/submissions/a/progress")
    assert answer.status_code == 200, answer.text
    found = answer.json()["estimate"]
    assert found["credits"] == {"spent": 3.0, "inputs": 2, "projected": 6.0}
    assert found["plan_per_minute"] == 80
