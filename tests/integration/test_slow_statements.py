"""A statement that takes too long is not reported as an outage of Postgres."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from everyrun.health import Health
from everyrun.projection.feed import Feed
from everyrun.reconciler import app as reconciler
from everyrun.reconciler.polling import Polling
from everyrun.reconciler.sweeps import Sweeps
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY, SlowStatementError, is_slow, open_pool
from everyrun.store.sql import Statements
from everyrun.submission import app as submission
from tests.conftest import eventually

pytestmark = pytest.mark.stack


@pytest.fixture
async def pool(database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    create = asyncpg.create_pool
    monkeypatch.setattr(asyncpg, "create_pool", lambda *a, **o: create(*a, **{**o, "command_timeout": 0.3}))
    pool = await open_pool(Settings(postgres_dsn=database), name="test")
    monkeypatch.undo()
    yield pool
    pool.terminate()


async def test_slow_statement_is_named_and_is_not_an_outage(pool: asyncpg.Pool, tmp_path: Any) -> None:
    (tmp_path / "some.sql").write_text("-- name: sleepy\nselect pg_sleep(5)\n")
    sleepy = Statements(tmp_path / "some.sql")["sleepy"]
    for method in (pool.fetch, pool.fetchrow, pool.fetchval, pool.execute):
        with pytest.raises(SlowStatementError, match=r"sleepy \(some.sql\) took too long") as found:
            await method(sleepy)
        assert is_slow(found.value)
        # Code that retries on POSTGRES_AWAY retries this too.
        assert isinstance(found.value, POSTGRES_AWAY)
    async with pool.acquire() as connection:
        await connection.execute("set statement_timeout = 50")
        with pytest.raises(SlowStatementError, match="sleepy"):
            await connection.fetch(sleepy)
    assert await pool.fetchval("select 1") == 1


async def test_postgres_that_does_not_answer_is_an_outage(
    pool: asyncpg.Pool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_answer(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(asyncpg, "connect", no_answer)
    with pytest.raises(TimeoutError):
        await pool.fetchval("select pg_sleep(5)")
    assert not is_slow(TimeoutError())


async def test_readyz_reports_no_outage_for_a_slow_statement(database: str) -> None:
    slow = SlowStatementError("the statement x took too long")
    health = Health()
    feed = Feed(Settings(postgres_dsn=database), None, "", None, health)  # type: ignore[arg-type]
    await feed.report_unavailable(slow)

    class Slowly:
        async def catch_up(self) -> None:
            raise slow

    with pytest.raises(SlowStatementError):
        await submission._catch_up(Slowly(), health)  # type: ignore[arg-type]
    assert health.waiting == {}
    await feed.report_unavailable(TimeoutError())
    assert "database" in health.waiting


async def test_polls_continue_and_the_leader_stays_while_workflows_cannot_be_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls and sweeps run concurrently: a failing one does not stop the other."""
    polls, leads = 0, 0

    async def poll(_self: Polling) -> None:
        nonlocal polls
        polls += 1

    async def sweep(_self: Sweeps) -> None:
        raise SlowStatementError("the statement workflows took too long")

    made = reconciler.RunLists

    def leading(extend: Any) -> Any:
        nonlocal leads
        leads += 1
        return made(extend)

    monkeypatch.setattr(Polling, "poll_due", poll)
    monkeypatch.setattr(Sweeps, "sweep_due", sweep)
    monkeypatch.setattr(reconciler, "RunLists", leading)
    health = Health()
    given = settings.model_copy(update={"poll_every": 0.02, "extend_base_url": "http://127.0.0.1:1"})
    work = reconciler._keep_running(health, "polling", lambda: reconciler._lead(given, None, health))  # type: ignore[arg-type]
    task = asyncio.create_task(work)
    try:
        await eventually(lambda: polls > 20, "polls go on")
        assert (leads, health.waiting) == (1, {})
    finally:
        task.cancel()
