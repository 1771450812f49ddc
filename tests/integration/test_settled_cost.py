"""The check for a settled submission runs whenever a batch settles, and its total cost grows linearly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from everyrun.processor import publisher
from tests.integration.costs import pages, settled

pytestmark = pytest.mark.stack
ASKED = publisher._sql["settled_submissions"]


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database, server_settings={"search_path": "everyrun"})
    yield connection
    await connection.close()


async def submission(connection: asyncpg.Connection, batches: int, sent: int, *, open_one: int | None = None) -> None:
    """Insert a submission with two inputs per batch; the first ``sent`` batches are settled, except ``open_one``."""
    await connection.execute("truncate submissions, batches, results")
    await connection.execute(
        "insert into submissions (submission_id, workflow_id, expected, created_at) values ('s', 'w', $1, now())",
        2 * batches,
    )
    await connection.execute(
        "insert into batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state, counts, input_ids)"
        " select 's.c' || lpad(n::text, 5, '0'), 1, 'b' || n, 's', 'w', 2,"
        " case when n = $2 then 'SUBMITTED' else 'SETTLED' end,"
        ' case when n = $2 then \'{"PROCESSED": 1, "PROCESSING": 1}\'::jsonb else \'{"PROCESSED": 2}\' end,'
        " array['s:' || 2 * n - 1, 's:' || 2 * n] from generate_series(1, $1) n",
        *(sent, open_one),
    )
    await connection.execute(
        "insert into results (input_id, external_id, submission_id, position, chunk, attempt, file, metadata, status,"
        " version) select 's:' || n, n::text, 's', n, 's.c' || lpad(((n + 1) / 2)::text, 5, '0'), 1, '{}', '{}',"
        " 'PROCESSED', '' from generate_series(1, 2 * $1) n",
        sent,
    )
    await settled(connection, "submissions", "batches", "results")


@pytest.mark.parametrize("case", ["one batch is open", "one batch is not sent"])
async def test_the_check_of_an_open_submission_costs_the_same_for_any_size(
    connection: asyncpg.Connection, case: str
) -> None:
    costs = []
    for size in (500, 10_000):
        if case == "one batch is open":
            await submission(connection, size, size, open_one=size // 2)
        else:
            await submission(connection, size, size - 1)
        assert await connection.fetch(ASKED, ["s"]) == []
        costs.append(await pages(connection, ASKED, ["s"]))
    assert 0 < costs[1] <= 2 * costs[0], costs


async def test_counters_of_a_settled_submission_are_summed(connection: asyncpg.Connection) -> None:
    await submission(connection, 5, 5)
    (row,) = await connection.fetch(ASKED, ["s", "another"])
    assert (row["submission_id"], row["expected"], json.loads(row["counts"])) == ("s", 10, {"PROCESSED": 10})
    # An open attempt does not count if all its inputs are settled or count in another attempt.
    await connection.execute("update batches set state = 'SUBMITTED' where batch_id = 'b2'")
    assert len(await connection.fetch(ASKED, ["s"])) == 1
    # A chunk in the middle is not accepted yet.
    await connection.execute("update batches set state = 'IN_DOUBT', counts = '{}' where batch_id = 'b2'")
    assert await connection.fetch(ASKED, ["s"]) == []


async def test_submissions_with_more_than_99999_chunks_settle_too(connection: asyncpg.Connection) -> None:
    await submission(connection, 3, 3)
    await connection.execute("update batches set chunk = 's.c99999' where batch_id = 'b2'")
    assert await connection.fetch(ASKED, ["s"]) == []
    await connection.execute("update batches set chunk = 's.c100000' where batch_id = 'b3'")
    assert len(await connection.fetch(ASKED, ["s"])) == 1
