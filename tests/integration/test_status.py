"""An input has one status everywhere, with what it waits for, until when, and what helps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.doctor.ask_postgres import ask_postgres
from everyrun.query.api import query_api
from everyrun.settings import Settings
from everyrun.store.pool import connection_setup
from everyrun.waiting import WAITS_FOR

pytestmark = pytest.mark.stack
TOKEN = "a-token-of-sixteen-or-more"
SIZE = 10

#: For each chunk: its state in the queue with more of its columns, the state of its attempt in the tables (None: no
#: row), the status and waits_for that everything must show, and True if queue and tables differ.
_CALLS, _WINDOW = "deadline = now() + interval '5 minutes'", "deadline = now() + interval '9 minutes', reason = '502'"
_OVER, _LATER = "deadline = now() - interval '1 minute'", "not_before = now() + interval '1 minute', reason = '429'"
CHUNKS: dict[str, tuple[str, str, str | None, str, str, bool]] = {
    "queued": ("waiting", "", None, "WAITING", "queued", False),
    "retry": ("waiting", _LATER, "RETURNED", "WAITING", "retry", False),
    # Its worker was killed after it claimed the chunk, before it wrote to the log.
    "claimed": ("sending", _CALLS, None, "SENDING", "calling", True),
    "calling": ("sending", _CALLS, "SENDING", "SENDING", "calling", False),
    # The tables lag, and `doubt list` shows the same as the report.
    "doubt_ahead": ("in_doubt", _WINDOW, "SENDING", "IN_DOUBT", "in_doubt", True),
    "doubt": ("in_doubt", _WINDOW, "IN_DOUBT", "IN_DOUBT", "in_doubt", False),
    "window_over": ("in_doubt", _OVER, "IN_DOUBT", "IN_DOUBT", "sweeps", False),
    "held": ("held", "deadline = now(), reason = 'resent twice'", "IN_DOUBT", "IN_DOUBT", "held", False),
    # Accepted, and its event has not reached the tables.
    "submitted": ("submitted", "batch_id = 'b1'", "SENDING", "SENDING", "in_transit", True),
    "refused": ("refused", "reason = '400'", None, "SENDING", "in_transit", True),
}


class Installation:
    """A query service over a queue and tables with a chunk that is stuck in every way."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.app = query_api(settings, pool)

    async def get(self, path: str, **params: Any) -> Any:
        transport = httpx.ASGITransport(self.app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://q", headers=headers) as http:
            answer = await http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def results(self, submission: str, status: str, limit: int = 1000) -> list[dict[str, Any]]:
        rows, cursor = [], None
        while True:
            params = {"submission_id": submission, "status": status, "limit": limit}
            page = await self.get("/v1/results", **params, **({"cursor": cursor} if cursor else {}))
            rows += page["results"]
            cursor = page["next_cursor"]
            if cursor is None:
                return rows

    async def submission(
        self, name: str, chunks: dict[str, tuple[Any, ...]], *, age: str = "0 s", announced: bool = True
    ) -> None:
        expected = len(chunks) * SIZE
        await self.pool.execute(
            "insert into everyrun_queue.submissions (submission_id, workflow_id, priority, expected, batches,"
            " content_hash, created_at, announced_at) values ($1, 'w', 90, $2, $3, '', now() - $4::text::interval,"
            " case when $5 then now() end)",
            *(name, expected, len(chunks), age, announced),
        )
        if announced:
            await self.pool.execute(
                "insert into everyrun.submissions values ($1, 'w', null, 90, $2, now() - $3::text::interval)",
                *(name, expected, age),
            )
        await self.pool.execute(
            "insert into everyrun_queue.inputs (submission_id, position, external_id, file, metadata)"
            " select $1, i, 'i' || i, '{}', '{}' from generate_series(1, $2) i",
            *(name, expected),
        )
        for number, (chunk, (state, more, logged, *_)) in enumerate(chunks.items()):
            first = number * SIZE + 1
            await self.pool.execute(
                "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state,"
                " attempt) values ($1, $2, $3, $4, $5, 1)",
                *(chunk, name, first, first + SIZE - 1, state),
            )
            if more:
                await self.pool.execute(f"update everyrun_queue.chunks set {more} where chunk = $1", chunk)
            if logged is not None:
                ids = [f"{name}:i{n}" for n in range(first, first + SIZE)]
                await self.pool.execute(
                    "insert into everyrun.batches (chunk, attempt, submission_id, workflow_id, expected, state,"
                    " requested_at, input_ids) values ($1, 1, $2, 'w', $3, $4, now() - interval '2 minutes', $5)",
                    *(chunk, name, SIZE, logged, ids),
                )


@pytest.fixture
async def here(database: str) -> AsyncIterator[Installation]:
    settings = Settings(postgres_dsn=database, api_token=TOKEN)
    async with asyncpg.create_pool(database, min_size=1, max_size=8, init=connection_setup) as pool:
        yield Installation(pool, settings)


async def test_every_command_and_route_reports_the_same_status(here: Installation) -> None:
    await here.submission("sub_1", CHUNKS)
    expected: dict[str, int] = {}
    for _, _, _, status, _, _ in CHUNKS.values():
        expected[status] = expected.get(status, 0) + SIZE
    in_transit = SIZE * sum(differs for *_, differs in CHUNKS.values())

    progress = await here.get("/v1/submissions/sub_1/progress")
    report = await here.get("/v1/submissions/sub_1/report")
    for said in (progress, report):
        assert said["by_status"] == expected
        assert sum(one["inputs"] for one in said["waiting"]) == SIZE * len(CHUNKS)
        assert said["in_transit"] == in_transit
    # Nothing is wrong, but the report is not balanced while queue and tables differ.
    assert (report["imbalances"], report["balanced"]) == ([], False)

    for status, number in expected.items():
        rows = await here.results("sub_1", status, limit=7)
        assert len({row["input_id"] for row in rows}) == len(rows) == number
        for row in rows:
            _, _, _, wanted, waits_for, _ = CHUNKS[row["chunk"]]
            assert (row["status"], row["waits_for"]) == (wanted, waits_for) == (status, waits_for)
            assert row["reason"]
    for number, (chunk, (_, _, _, status, waits_for, _)) in enumerate(CHUNKS.items()):
        one = await here.get(f"/v1/results/sub_1:i{number * SIZE + 3}")
        assert (one["chunk"], one["status"], one["waits_for"]) == (chunk, status, waits_for)
        by_id = await here.get("/v1/results", submission_id="sub_1", external_id=f"i{number * SIZE + 3}", status=status)
        assert [row["chunk"] for row in by_id["results"]] == [chunk]

    # Chunks that need an action are overdue. A retry, and a chunk that waits for its turn, are not.
    late = ["calling", "doubt", "doubt_ahead", "held", "window_over"]
    overdue = await here.get("/v1/overdue", submission_id="sub_1")
    assert [one["chunk"] for one in overdue["unsent"]] == late
    for one in overdue["unsent"]:
        assert (one["status"], one["waits_for"]) == CHUNKS[one["chunk"]][3:5]
        assert (one["until"] is not None) == (one["waits_for"] in ("calling", "in_doubt"))
    assert report["overdue_by_reason"] == {"calling": SIZE, "held": SIZE, "in_doubt": 2 * SIZE, "sweeps": SIZE}
    facts, _ = await ask_postgres(here.settings)
    seen = {one.waiting.waits_for: one.waiting.inputs for one in facts.late}
    assert seen == report["overdue_by_reason"]


async def test_tables_decide_the_status_of_inputs_with_rows(here: Installation) -> None:
    chunks = {state: (state, "deadline = now()", "SUBMITTED") for state in ("waiting", "sending", "in_doubt", "held")}
    await here.submission("sub_1", chunks)
    await here.pool.execute("update everyrun.batches set counts = jsonb_build_object('PROCESSED', expected)")
    progress = await here.get("/v1/submissions/sub_1/progress")
    assert (progress["by_status"], progress["waiting"], progress["in_transit"]) == ({"PROCESSED": 4 * SIZE}, [], 0)
    for status in ("WAITING", "SENDING", "IN_DOUBT"):
        assert await here.results("sub_1", status) == []
    assert (await here.get("/v1/overdue"))["unsent"] == []


async def test_pauses_kafka_and_a_lost_queue_are_explained(here: Installation) -> None:
    one = {"waiting": ("waiting", "", None)}
    await here.submission("sub_new", {"sub_new.c1": one["waiting"]}, age="2 minutes", announced=False)
    await here.submission("sub_slow", {"sub_slow.c1": one["waiting"]}, age="2 days")

    async def waits(submission: str) -> list[tuple[str, str, str | None]]:
        waiting = (await here.get(f"/v1/submissions/{submission}/progress"))["waiting"]
        return [(w["waits_for"], w["reason"], w["what_to_do"]) for w in waiting]

    assert [w[0] for w in await waits("sub_new")] == ["unannounced"]
    assert [w[0] for w in await waits("sub_slow")] == ["queued"]
    assert [o["chunk"] for o in (await here.get("/v1/overdue"))["unsent"]] == ["sub_new.c1", "sub_slow.c1"]
    await here.pool.execute("insert into everyrun_queue.paused values ('submission', 'sub_slow', 'mine', 'me', now())")
    ((code, reason, helps),) = await waits("sub_slow")
    assert (code, "mine" in reason, "submission resume sub_slow" in str(helps)) == ("submission_paused", True, True)
    await here.pool.execute("insert into everyrun_queue.paused values ('workflow', 'w', '402', null, now())")
    ((code, reason, helps),) = await waits("sub_slow")
    assert (code, "402" in reason, "workflow resume w" in str(helps)) == ("workflow_paused", True, True)

    # The queue is lost, with a chunk that the tables have and with inputs that were never sent.
    await here.submission("sub_lost", {"lost.c1": ("in_doubt", "", "IN_DOUBT"), "lost.c2": ("waiting", "", None)})
    await here.pool.execute("delete from everyrun_queue.chunks where submission_id = 'sub_lost'")
    await here.pool.execute("delete from everyrun_queue.inputs where submission_id = 'sub_lost'")
    await here.pool.execute("delete from everyrun_queue.submissions where submission_id = 'sub_lost'")
    report = await here.get("/v1/submissions/sub_lost/report")
    assert report["by_status"] == {"IN_DOUBT": SIZE, "WAITING": SIZE}
    assert {w["waits_for"] for w in report["waiting"]} == {"queue_lost"}
    assert report["overdue_by_reason"] == {"queue_lost": 2 * SIZE}
    assert len(await here.results("sub_lost", "IN_DOUBT")) == SIZE
    assert (await here.get("/v1/results/sub_lost:i3"))["waits_for"] == "queue_lost"


async def test_page_reads_only_its_own_chunks(here: Installation, database: str) -> None:
    chunks = {f"c{number:04}": ("waiting", "", None) for number in range(60)}
    await here.submission("sub_1", chunks)
    rows = await here.results("sub_1", "WAITING", limit=9)
    assert [row["position"] for row in rows] == list(range(1, 601))

    async def chunk_rows(most: int) -> int:
        statement = "select count(*) from everyrun_queue.unsent('sub_1', 'c0010', $1, 'WAITING')"
        return int(await here.pool.fetchval(statement, most))

    assert [await chunk_rows(most) for most in (1, 7)] == [1, 7]
    assert set(WAITS_FOR) >= {waits_for for *_, waits_for, _ in CHUNKS.values()}


async def test_progress_reports_missing_results_and_the_next_poll(here: Installation) -> None:
    await here.submission("sub_1", {"none": CHUNKS["queued"]})
    assert (await here.get("/v1/submissions/sub_1/progress"))["polling"] is None
    sent = (
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state, counts,"
    )
    sent += " submitted_at, input_ids) values ($1, 1, $1, 'sub_1', 'w', 10, $2, $3, now() - $4::interval, '{}')"
    waiting, here_all = {"PROCESSED": 4, "SUBMITTED": 5, "PROCESSING": 1}, {"NEEDS_REVIEW": 1, "FAILED": 9}
    await here.pool.execute(sent, "b1", "SUBMITTED", waiting, timedelta(seconds=20))
    await here.pool.execute(sent, "b2", "SUBMITTED", here_all, timedelta(hours=1))
    await here.pool.execute(sent, "b3", "SETTLED", waiting, timedelta(hours=1))
    for path in ("progress", "report"):
        polling = (await here.get(f"/v1/submissions/sub_1/{path}"))["polling"]
        assert (polling["missing"], polling["polled"]) == (6, False)
        assert 30 < polling["next_poll_in"] <= 40, "a batch is first polled a minute after it was sent"
    polled = "insert into everyrun_queue.polls values ('b1', now(), 10, 6, null, now() + interval '20 s')"
    await here.pool.execute(polled)
    stands = await here.get("/v1/submissions/sub_1/progress")
    polling = stands["polling"]
    assert (polling["missing"], polling["polled"]) == (6, True)
    assert stands["needs_person"] == {"needs_review": 1}
    assert 10 < polling["next_poll_in"] <= 20


async def test_ambiguous_runs_are_not_called_missing(here: Installation) -> None:
    """The list said "3 results missing; next poll in 84 s", though no poll can tell to which inputs they belong."""
    await here.submission("sub_1", {"none": CHUNKS["queued"]})
    await here.pool.execute(
        "insert into everyrun.batches (chunk, attempt, batch_id, submission_id, workflow_id, expected, state, counts,"
        " submitted_at, input_ids) values ('b1', 1, 'b1', 'sub_1', 'w', 4, 'SUBMITTED', $1, now(), '{}')",
        {"SUBMITTED": 4},
    )
    unmatched = (
        "insert into everyrun.unmatched_runs (run_id, batch_id, status, reason, metadata, first_seen, observed_at,"
        " source, version, run, fingerprints, bindings)"
        " values ($1, 'b1', 'PROCESSED', 'ambiguous_metadata', '{}', now(), now(), 'poll', '', '{}', '{}', '[]')"
    )
    for missing, run_id in ((3, "r1"), (2, "r2"), (1, "r3"), (None, "r4")):
        await here.pool.execute(unmatched, run_id)
        stands = await here.get("/v1/submissions/sub_1/progress")
        assert (stands["polling"] and stands["polling"]["missing"]) == missing
    assert stands["needs_person"] == {"ambiguous_metadata": 4}
