"""Kafka expires the processors' offsets while they are down: nothing is published twice or left out."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.conftest import read_topic
from tests.integration.tables import project
from tests.integration.test_backfill import an_admin, committed, ends, say, until_acknowledged, worlds

pytestmark = pytest.mark.stack


async def forget_offsets(settings: Settings) -> None:
    """Delete the group's offsets, as Kafka does after a long time without members. Waits until it has none."""

    async def forgotten() -> bool:
        async with an_admin(settings) as admin:
            return await _forget(settings, admin)

    await eventually(forgotten, "the group is forgotten", 60)
    assert await committed(settings) == {}


async def _forget(settings: Settings, admin: AIOKafkaAdminClient) -> bool:
    group = settings.topic("processor")
    coordinator = await admin.find_coordinator(group)
    answer = await admin._send_request(DeleteGroupsRequest([group]), coordinator)
    ((_, code),) = answer.results
    error = for_code(code)
    assert error.__name__ in ("NoError", "NonEmptyGroupError", "GroupIdNotFoundError"), error
    return error.__name__ != "NonEmptyGroupError"


async def until_kept(settings: Settings) -> None:
    """Wait until Postgres has a copy of the acknowledged offsets."""
    wanted = await ends(settings)

    async def kept() -> bool:
        connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
        rows = await connection.fetch("select * from everyrun_queue.published_offsets where next_offset > 0")
        await connection.close()
        return {(row["topic"], row["partition"]): row["next_offset"] for row in rows} == wanted

    await eventually(kept, "how far is published is kept", 30)


async def results(settings: Settings) -> list[str]:
    """The input of every record of ``results``."""
    return sorted(event["input_id"] for event, _ in await read_topic(settings, "results"))


async def test_nothing_is_published_twice_or_left_out(service: Any, settings: Settings) -> None:
    first, second = worlds(25, 2)
    await say(settings, first)
    processor = await service("processor").ready()
    await until_acknowledged(settings)
    await until_kept(settings)
    processor.terminate()
    before, reports = await results(settings), len(await read_topic(settings, "reports"))
    assert before
    await forget_offsets(settings)
    # Meanwhile the log grows, and a rebuild, which publishes nothing, applies it to the tables.
    await say(settings, second)
    dsn = settings.postgres_dsn.get_secret_value()
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "truncate everyrun.applied_offsets, everyrun.submissions, everyrun.batches, everyrun.results,"
        " everyrun.other_runs, everyrun.unmatched_runs, everyrun.deliveries, everyrun.quarantine,"
        " everyrun.decisions"
    )
    await project(settings, dsn)
    inputs = {row["input_id"] for row in await connection.fetch("select input_id from everyrun.results")}
    await connection.close()
    processor = await service("processor").ready()
    await until_acknowledged(settings)
    after = await results(settings)
    # Published states do not come again. All others come, even though the tables had them already.
    assert [input_id for input_id in after if input_id in set(before)] == before
    assert set(after) == inputs > set(before)
    assert len(await read_topic(settings, "reports")) > reports
    processor.terminate()


async def test_a_new_group_starts_at_the_first_record(service: Any, settings: Settings) -> None:
    (world,) = worlds(26, 1)
    await say(settings, world)
    # Tables that existed before any processor ran.
    await project(settings, settings.postgres_dsn.get_secret_value())
    await service("processor").ready()
    await until_acknowledged(settings)
    assert await results(settings)
