"""A record that the tables refuse goes to the quarantine with its reason, and those beside it are applied."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
import msgspec
import pytest

from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.projection import tables
from everyrun.projection.decode import Poll
from everyrun.projection.feed import Feed
from everyrun.settings import Settings
from tests.records import an_input, batch_event, lay_out, run_event

pytestmark = pytest.mark.stack


class Quarantine:
    """The topic's twin."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def append(self, records: Iterable[Record]) -> None:
        self.records += records


def registered(submission: str, when: float, row: int) -> Record:
    given = [msgspec.structs.replace(an_input(submission, 1), metadata={"n": row})]
    return batch_event(
        events.BatchRegistered, submission, f"{submission}.c00001", 1, when, batch_id="batch_r", inputs=given
    )


async def test_a_batch_registered_again_with_other_inputs_holds_up_nothing(database: str) -> None:
    """As a queue that was lost may let pass: the first in the log stands, the other is kept in the quarantine."""
    records = [
        registered("sub_r", 1, 1),
        registered("sub_o", 2, 2),
        run_event("run_a", "batch_r", "PROCESSED", 5, key=None, metadata={"n": 1}, end=4),
    ]
    quarantine = Quarantine()
    async with asyncpg.create_pool(
        database, min_size=1, max_size=2, init=tables.setup_connection, server_settings={"search_path": tables.SCHEMA}
    ) as pool:
        feed = Feed(Settings(postgres_dsn=database), pool, "cluster", quarantine)
        log = lay_out(records, partitions=1)
        await feed.apply([Poll(*place, there) for place, there in log.items()])
        applied = await pool.fetch("select topic, next_offset from applied_offsets where next_offset > 0 order by 1")
        rows = await pool.fetch("select input_id, run_id, status from results")
    assert [tuple(row) for row in applied] == [("batches", 2), ("runs", 1)]
    assert [tuple(row) for row in rows] == [(an_input("sub_r", 1).input_id, "run_a", "PROCESSED")]
    (kept,) = quarantine.records
    said = msgspec.json.decode(kept.value)
    assert (said["topic"], said["offset"]) == ("batches", 1)
    assert "batches_batch_id_key" in said["reason"]
