"""The cost of a claim does not depend on the number of submitted, delayed or paused chunks; claims keep the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from everyrun.submission.announcer import _sql as _announcer_sql
from everyrun.submission.decisions.pauses import _sql as _pauses_sql
from everyrun.submission.dispatch.dispatcher import _sql
from everyrun.submission.dispatch.protocol import Claimed, step
from everyrun.submission.dispatch.transitions import chunk_state
from everyrun.submission.recovery.queue_recovery import _sql as _recovery_sql
from tests.integration.costs import pages, settled

pytestmark = pytest.mark.stack
SMALL, LARGE = 1000, 20_000
SUBMISSIONS, CHUNKS = "everyrun_queue.submissions", "everyrun_queue.chunks"
LOADS = ("everyrun_queue.submission_loads", "everyrun_queue.workflow_loads", "everyrun_queue.load_changes")


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def submission(
    connection: asyncpg.Connection, name: str, chunks: int, *, of: int = 1, workflow: str = "w", announced: bool = True
) -> None:
    """Insert ``of`` submissions with this number of chunks each."""
    await connection.execute(
        f"insert into {SUBMISSIONS} (submission_id, workflow_id, expected, batches, content_hash, created_at,"
        " announced_at) select $1 || '_' || lpad(n::text, 6, '0'), $2, $3::int, $3::int, '', now(),"
        " case when $4 then now() end"
        " from generate_series(1, $5) n",
        *(name, workflow, chunks, announced, of),
    )
    await connection.execute(
        f"insert into {CHUNKS} (chunk, submission_id, first_position, last_position)"
        " select s.submission_id || '.c' || lpad(n::text, 5, '0'), s.submission_id, n, n"
        f" from {SUBMISSIONS} s, generate_series(1, $2) n where s.submission_id like $1 || '%'",
        *(name, chunks),
    )


async def claim(connection: asyncpg.Connection) -> str | None:
    incarnation = await connection.fetchval(_recovery_sql["incarnation"])
    return await connection.fetchval(_sql["claim"], "me", 60.0, incarnation, 0)


async def test_the_claim_function_does_the_step_of_the_protocol(connection: asyncpg.Connection) -> None:
    await submission(connection, "a", 1)
    await connection.execute(f"update {CHUNKS} set resends = 1, reason = 'no evidence within the window', attempt = 1")
    before = await connection.fetchrow(f"select * from {CHUNKS}")
    assert await claim(connection) == before["chunk"]
    after = await connection.fetchrow(f"select * from {CHUNKS}")
    assert chunk_state(after) == step(chunk_state(before), Claimed()).after


async def cost(connection: asyncpg.Connection) -> int:
    incarnation = await connection.fetchval(_recovery_sql["incarnation"])
    return await pages(connection, _sql["claim"], "me", 60.0, incarnation, 0) + await pages(
        connection, _sql["something_waits"], 0
    )


async def pause(connection: asyncpg.Connection, kind: str, name: str) -> None:
    await connection.execute(
        "insert into everyrun_queue.paused (kind, id, reason, since)"
        f" select $1, submission_id, '', now() from {SUBMISSIONS} where $1 = 'submission' and submission_id like $2"
        " union all select $1, $2, '', now() where $1 = 'workflow'",
        *(kind, name),
    )


async def sent(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", size)
    await connection.execute(f"update {CHUNKS} set state = 'submitted'")


async def later(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", size)
    await connection.execute(f"update {CHUNKS} set not_before = now() + interval '1 hour'")


async def later_in_many(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", 1, of=size)
    await connection.execute(f"update {CHUNKS} set not_before = now() + interval '1 hour'")


async def a_paused_submission(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", size)
    await pause(connection, "submission", "a%")


async def paused_submissions(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", 1, of=size)
    await pause(connection, "submission", "a%")


async def a_paused_workflow(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", 1, of=size, workflow="paused")
    await pause(connection, "workflow", "paused")


async def unannounced(connection: asyncpg.Connection, size: int) -> None:
    await submission(connection, "a", size, announced=False)


@pytest.mark.parametrize(
    "in_front",
    [sent, later, later_in_many, a_paused_submission, paused_submissions, a_paused_workflow, unannounced],
)
async def test_the_cost_of_a_claim_does_not_depend_on_skipped_chunks(
    database: str, postgres: Callable[[str], str], in_front: Callable[[asyncpg.Connection, int], Awaitable[None]]
) -> None:
    costs = []
    connection = await asyncpg.connect(database)
    for size in (SMALL, LARGE):
        await connection.execute(f"truncate {SUBMISSIONS}, {CHUNKS}, everyrun_queue.paused cascade")
        await in_front(connection, size)
        await submission(connection, "b", 2)
        await submission(connection, "c", size)
        # Chunks that cannot be sent are marked as skipped once, a thousand chunks a call.
        for _ in range(size // 1000 + 1):
            if (first := await claim(connection)) is not None:
                break
        assert first == "b_000001.c00001"
        await settled(connection, SUBMISSIONS, CHUNKS, "everyrun_queue.paused", *LOADS)
        # The first calls also plan the statements.
        costs.append([await cost(connection) for _ in range(6)][-1])
    await connection.close()
    assert 0 < costs[1] <= 2 * costs[0], costs
    assert costs[1] < 300


async def test_chunks_are_claimed_in_order_even_after_waits_and_pauses(
    connection: asyncpg.Connection,
) -> None:
    await submission(connection, "a", 3)
    await submission(connection, "b", 2, workflow="other")
    await submission(connection, "c", 2, announced=False)
    await connection.execute(f"update {CHUNKS} set not_before = now() + interval '1 hour' where chunk ~ 'a.*c00002'")
    await pause(connection, "workflow", "other")
    assert await claim(connection) == "a_000001.c00001"
    assert await claim(connection) == "a_000001.c00003"
    assert await claim(connection) is None
    assert not await connection.fetchval(_sql["something_waits"], 0)
    await connection.execute("update everyrun_queue.submissions set announced_at = now() where announced_at is null")
    assert await claim(connection) == "c_000001.c00001"
    await connection.execute(_pauses_sql["resume"], "workflow", "other")
    await connection.execute(f"update {CHUNKS} set not_before = now() where not_before > now()")
    assert await connection.fetchval(_sql["something_waits"], 0)
    rest = [await claim(connection) for _ in range(5)]
    # Two chunks of a and one of c are open, so b is first, which has none.
    assert rest == ["b_000001.c00001", "b_000001.c00002", "c_000001.c00002", "a_000001.c00002", None]
    assert await connection.fetchval(_sql["claim"], "me", 60.0, "another incarnation", 0) is None


async def test_no_chunk_stays_skipped_when_claims_and_resumes_coincide(database: str) -> None:
    """Resumes and announcements come at any moment of a claim. Chunks that nothing blocks any longer are claimed."""
    async with asyncpg.create_pool(database, min_size=6, max_size=6) as pool:
        async with pool.acquire() as connection:
            await submission(connection, "a", 1, of=40)
            await submission(connection, "b", 1, of=40, announced=False)
            await pause(connection, "submission", "a%")
        claimed: list[str] = []
        ended = asyncio.Event()

        async def claims() -> None:
            while True:
                last = ended.is_set()
                async with pool.acquire() as connection:
                    found = await claim(connection)
                if found is not None:
                    claimed.append(found)
                elif last:
                    return

        async def ends() -> None:
            for number in range(1, 41):
                await pool.execute(_pauses_sql["resume"], "submission", f"a_{number:06d}")
                await pool.execute(_announcer_sql["mark_announced"], f"b_{number:06d}")
            ended.set()

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(claims())
            group.create_task(ends())
        assert len(claimed) == len(set(claimed)) == 80
