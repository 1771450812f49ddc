"""What is committed is published, though a worker dies between the two: whoever reads it again publishes it."""

from __future__ import annotations

import random

import asyncpg
import msgspec
import pytest

from everyrun.log.cloudevents import Record
from everyrun.processor.publisher import Publisher
from everyrun.projection import tables
from everyrun.projection.decode import Poll
from everyrun.projection.feed import Feed
from everyrun.settings import Settings
from tests.records import a_world, lay_out

SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1")


class Published:
    """A log that remembers what is written to it."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def append(self, records) -> None:
        self.records += records

    def newest(self, topic: str) -> dict[bytes, dict]:
        """The last event of each key."""
        return {record.key: msgspec.json.decode(record.value) for record in self.records if record.topic == topic}


@pytest.mark.parametrize("seed", range(12))
async def test_a_poll_that_was_applied_in_part_and_never_published_is_published_whole(database: str, seed: int) -> None:
    chance = random.Random(seed)
    log = {place: records for place, records in lay_out(a_world(chance)).items() if records}
    async with asyncpg.create_pool(
        database, min_size=1, init=tables.setup_connection, server_settings={"search_path": tables.SCHEMA}
    ) as pool:
        published = Published()
        feed = Feed(SETTINGS, pool, "cluster", published)
        # A worker applies the beginnings of all partitions, and dies before it publishes anything.
        begun = [Poll(*place, records[: chance.randint(0, len(records))]) for place, records in sorted(log.items())]
        for poll in begun:
            if poll.records:
                await feed.apply([poll])
        # Another reads from the group's offsets on: its polls go past what is applied.
        publisher = Publisher(pool, "cluster", published, feed)
        applied = await feed.apply([Poll(*place, records) for place, records in sorted(log.items())])
        await publisher.publish(applied, {})
        results, reports = published.newest("results"), published.newest("reports")
        rows = await pool.fetch("select input_id, version, run_id, status from results")
        assert rows
        for row in rows:
            event = results[row["input_id"].encode()]
            found = (event["version"], event["run_id"], event["status"])
            assert found == (row["version"], row["run_id"], row["status"])
        for row in await pool.fetch("select coalesce(batch_id, chunk) as key, state, attempt from batches"):
            assert (row["key"].encode() in reports) or row["state"] == "SENDING", dict(row)
        for row in await pool.fetch(
            "select batch_id, state, counts, duplicates from batches where batch_id is not null"
        ):
            event = reports[row["batch_id"].encode()]
            assert event["state"] == row["state"]
            assert event["counts"] == msgspec.json.decode(row["counts"])
            assert event["duplicates"] == row["duplicates"]
