"""Reads are cheap, and slow ones leave connections to the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.query import gate, overdue
from everyrun.query.api import _sql, query_api
from everyrun.settings import Settings
from everyrun.store.pool import connection_setup
from tests.conftest import eventually

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
REPORT = "/v1/submissions/s/report"


async def plan(connection: asyncpg.Connection, statement: str, *values: object) -> list[dict[str, Any]]:
    """Run a statement and return the nodes of its plan."""
    (found,) = json.loads(await connection.fetchval(f"explain (analyze, format json) {statement}", *values))

    def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for below in node.get("Plans", ()):
            yield from nodes(below)

    return list(nodes(found["Plan"]))


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def test_progress_reads_only_batches_of_its_submission(connection: asyncpg.Connection) -> None:
    await connection.execute("set enable_seqscan = off")
    # Unsent inputs come from a function, whose plan is not shown: see test_status.
    scans = [n for n in await plan(connection, _sql["counts"], "s") if n.get("Relation Name") == "batches"]
    assert scans
    assert all("submission_id = 's'" in (n.get("Index Cond") or n["Recheck Cond"]) for n in scans)


async def test_overdue_reads_few_rows_per_input_for_any_batch_size(
    connection: asyncpg.Connection,
) -> None:
    batches, size = 2, 1000
    await connection.execute(
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, expected, state, submitted_at,"
        " input_ids) select 'c' || b, 1, 'b' || b, 's', $2, 'SUBMITTED', now() - interval '2 days',"
        " array(select 's:' || b || '-' || i from generate_series(1, $2) i) from generate_series(1, $1) b",
        *(batches, size),
    )
    await connection.execute(
        "insert into everyrun.results (input_id, external_id, submission_id, batch_id, position, chunk, attempt, file,"
        " metadata, status, version)"
        " select 's:' || b || '-' || i, b || '-' || i, 's', 'b' || b, i, 'c' || b, 1, '{}', '{}', 'SUBMITTED', ''"
        " from generate_series(1, $1) b, generate_series(1, $2) i",
        *(batches, size),
    )
    await connection.execute("insert into everyrun_queue.polls values ('b1', now(), 9, 9), ('b2', now(), 9, 0)")
    for statement in (overdue._sql["overdue"], overdue._BY_REASON):
        nodes = await plan(connection, statement, 3600.0, "s", None, None, 80.0)
        scans = [node for node in nodes if node.get("Relation Name") == "results"]
        read = [(n["Actual Rows"] + n.get("Rows Removed by Filter", 0)) * n["Actual Loops"] for n in scans]
        assert scans
        # It must not be a thousand per input.
        assert sum(read) <= 10 * batches * size
    async with connection.transaction():
        found = await overdue.overdue_by_reason(connection, Settings(overdue_after=3600), "s", {})
    assert found == {"not_listed": size, "still_running": size}


async def ask(app: Any, path: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://q", headers=headers) as http:
        return await http.get(path)


@pytest.fixture
async def locked(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Lock batches and results, so that no read of them ends."""
    await connection.execute("insert into everyrun.submissions values ('s', 'w', null, 90, 1, now())")
    async with connection.transaction():
        await connection.execute("lock table everyrun.batches, everyrun.results in access exclusive mode")
        yield


async def test_slow_reads_leave_connections_to_others(
    database: str, locked: None, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PATIENCE", 0.2)
    async with asyncpg.create_pool(
        database, min_size=1, max_size=2 * gate.AT_A_TIME + 2, init=connection_setup
    ) as pool:
        app = query_api(Settings(api_token=TOKEN), pool)
        slow = [asyncio.create_task(ask(app, path)) for path in (REPORT, "/v1/results") * (gate.AT_A_TIME + 2)]
        await eventually(lambda: sum(task.done() for task in slow) == 4, "those beyond the gates are answered")
        for task in slow:
            if task.done():
                answer = task.result()
                assert (answer.status_code, answer.json()["code"]) == (503, "BUSY")
                assert answer.headers["retry-after"] == "5"
        assert (await ask(app, "/v1/unmatched")).status_code == 200
        await connection.execute("rollback")
        answers = [await task for task in slow]
        assert sum(answer.status_code == 200 for answer in answers) == 2 * gate.AT_A_TIME
        assert (await ask(app, REPORT)).status_code == 200


async def test_slow_read_is_answered_with_504_not_503(database: str, locked: None) -> None:
    async with asyncpg.create_pool(
        database, min_size=1, max_size=2, init=connection_setup, command_timeout=0.5
    ) as pool:
        answer = await ask(query_api(Settings(api_token=TOKEN), pool), REPORT)
        assert (answer.status_code, answer.json()["code"]) == (504, "TOO_SLOW")
