"""Secrets are removed from the queue after settling, or after a set time. The files then show what the log shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from everyrun.submission import redaction
from everyrun.submission.decisions import pauses
from everyrun.submission.dispatch import event_records, transitions
from everyrun.submission.dispatch.transitions import inputs_of
from everyrun.submission.redaction import next_redaction
from tests.integration.conftest import read_topic
from tests.integration.costs import pages, settled
from tests.integration.test_doubts import World, world

pytestmark = pytest.mark.stack
__all__ = ["world"]


async def files(world: World) -> list[dict[str, object]]:
    rows = await world.pool.fetch("select file from everyrun_queue.inputs order by submission_id, position")
    return [json.loads(row["file"]) for row in rows]


async def redact_due(world: World) -> None:
    """Redact every submission that is due, as if the time of each check had come."""
    await world.pool.execute(
        "update everyrun_queue.submissions set redact_after = now() where redact_after is not null"
    )
    await redaction.redact_due(world.pool, world.producer, world.settings)


async def settle(world: World, chunk: str, attempt: int = 1, state: str = "SETTLED") -> None:
    """Insert an attempt of a chunk, as the processor would."""
    await world.pool.execute(
        "insert into everyrun.batches (chunk, attempt, submission_id, expected, state, settled_at, input_ids)"
        " select c.chunk, $2, c.submission_id, c.last_position - c.first_position + 1, $3,"
        " case when $3 = 'SETTLED' then now() - interval '1 second' end, '{}'"
        " from everyrun_queue.chunks c where c.chunk = $1"
        " on conflict (chunk, attempt) do update set state = excluded.state, settled_at = excluded.settled_at",
        *(chunk, attempt, state),
    )


async def chunks(world: World) -> list[str]:
    return [row["chunk"] for row in await world.pool.fetch("select chunk from everyrun_queue.chunks order by chunk")]


async def redacted(world: World) -> bool:
    return bool(await world.pool.fetchval("select bool_and(redact_after is null) from everyrun_queue.submissions"))


async def test_all_events_of_an_input_show_the_same_file(world: World) -> None:
    world.settings.secrets_kept = 0
    await world.hand_in()
    await world.send()
    (chunk,) = await chunks(world)
    row = event_records.ChunkRow.of(await world.pool.fetchrow(transitions._sql["attempt"], chunk))
    before = event_records.redacted(await inputs_of(world.pool, row))
    await settle(world, chunk)
    for _ in range(2):
        await redact_due(world)
        assert await redacted(world)
        assert event_records.redacted(await inputs_of(world.pool, row)) == before
        assert await files(world) == [given.file for given in before]
    assert before[0].file == {"url": "https://files.example/0.pdf", "redacted": True}


async def test_a_chunk_that_was_accepted_twice_counts_once(world: World) -> None:
    world.settings.secrets_kept = 0
    world.settings.chunk_max_inputs = 2
    await world.hand_in(4)
    await world.send()
    await world.send()
    first, second = await chunks(world)
    await settle(world, first, 1)
    await settle(world, first, 2)
    await settle(world, second, 1, "SUBMITTED")
    await redact_due(world)
    assert all("signed" in str(file["url"]) for file in await files(world))
    # A chunk is not settled while another of its attempts is open.
    await settle(world, second)
    await settle(world, first, 3, "SUBMITTED")
    await redact_due(world)
    assert not await redacted(world)
    await settle(world, first, 3)
    # A cut chunk does not count, because it never settles.
    await world.pool.execute(
        "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state)"
        " select chunk || '-0', submission_id, first_position, last_position, 'cut' from everyrun_queue.chunks limit 1"
    )
    await redact_due(world)
    assert await redacted(world)
    assert not any("signed" in str(file) for file in await files(world))


async def test_an_unsettled_submission_loses_its_secrets_and_is_paused(world: World) -> None:
    world.settings.chunk_max_inputs = 2
    submission = await world.hand_in(4)
    await world.send()
    first, second = await chunks(world)
    await settle(world, first, 1, "SUBMITTED")
    await redact_due(world)
    assert not await redacted(world)
    world.settings.secrets_kept_unsettled = 0
    await redact_due(world)
    assert await redacted(world)
    assert not any("signed" in str(file) for file in await files(world))
    paused = await world.pool.fetchrow("select kind, id, reason from everyrun_queue.paused")
    assert (paused["kind"], paused["id"]) == ("submission", submission)
    assert "EVERYRUN_SECRETS_KEPT_UNSETTLED" in paused["reason"]
    assert "submission-paused" in {event["type"] for event, _ in await read_topic(world.settings, "batches")}
    for _ in range(2):
        await world.send()
        assert len(world.vendor.calls) == 1
        await world.pool.execute(pauses._sql["resume"], "submission", submission)
    assert await world.pool.fetchval("select state from everyrun_queue.chunks where chunk = $1", second) == "waiting"


async def test_the_cost_of_finding_submissions_to_redact_is_constant(database: str) -> None:
    connection = await asyncpg.connect(database)
    costs = []
    for size in (1000, 20_000):
        await connection.execute("truncate everyrun_queue.submissions cascade")
        await connection.execute(
            "insert into everyrun_queue.submissions (submission_id, workflow_id, expected, batches, content_hash,"
            " created_at, announced_at, redact_after) select 's' || n, 'w', 1, 1, '', now(), now(),"
            " case when n % 2 = 0 then now() + interval '1 hour' end from generate_series(1, $1) n",
            size,
        )
        await connection.execute(
            "insert into everyrun_queue.chunks (chunk, submission_id, first_position, last_position, state)"
            " select submission_id || '.c', submission_id, 1, 1, 'submitted' from everyrun_queue.submissions"
        )
        await settled(connection, "everyrun_queue.submissions", "everyrun_queue.chunks")
        arguments = [timedelta(days=1)] if "$1" in redaction._sql["to_redact"] else []
        costs.append(await pages(connection, redaction._sql["to_redact"], *arguments))
    await connection.close()
    assert 0 < costs[1] <= 2 * costs[0], costs


def test_older_submissions_are_checked_less_often() -> None:
    handed_in = datetime(2026, 11, 1, tzinfo=UTC)
    day = timedelta(days=1)

    def look(age: timedelta, settled_at: datetime | None = None) -> timedelta:
        return next_redaction(handed_in + age, handed_in, settled_at, day, 30 * day) - handed_in

    assert look(timedelta(0)) == timedelta(minutes=1)
    assert look(day) == day + day / 10
    assert look(20 * day) == 20 * day + timedelta(hours=6)
    # Never later than the end; after the end, at once.
    assert look(30 * day - timedelta(seconds=1)) == look(31 * day) == 30 * day
    assert look(day, handed_in + day) == 2 * day
    # Secrets of a submission that settled late are kept as long as the others.
    assert look(40 * day, handed_in + 40 * day) == 41 * day
    age, looks = timedelta(0), 0
    while age < 30 * day:
        age, looks = look(age), looks + 1
    assert looks < 200
