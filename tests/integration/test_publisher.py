"""Everything committed is published, even if a worker dies between the two: the next worker publishes it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable

import asyncpg
import msgspec
import pytest

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.reading import Poll
from everyrun.processor import publisher as publisher_module
from everyrun.processor.publisher import Publisher
from everyrun.projection import tables
from everyrun.projection.feed import Feed
from everyrun.settings import Settings
from tests.memory_log import MemoryLog
from tests.records import INSTALLATION, LOG, a_world, an_input, batch_event, lay_out, run_event

SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1")


@pytest.mark.parametrize("seed", range(12))
async def test_a_partly_applied_poll_is_published_completely(database: str, seed: int) -> None:
    chance = random.Random(seed)
    log = {place: records for place, records in lay_out(a_world(chance)).items() if records}
    async with asyncpg.create_pool(
        database, min_size=1, init=tables.setup_connection, server_settings={"search_path": tables.SCHEMA}
    ) as pool:
        published = MemoryLog()
        feed = Feed(SETTINGS, pool, LOG, published)
        # A worker applies the first records of all partitions, and dies before it publishes anything.
        begun = [Poll(*place, records[: chance.randint(0, len(records))]) for place, records in sorted(log.items())]
        for poll in begun:
            if poll.records:
                await feed.apply([poll])
        # Another worker reads from the group's offsets: its polls reach beyond what is applied.
        publisher = Publisher(pool, LOG, published, feed)
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


class Overtaken(MemoryLog):
    """A log to which other workers write later states while ours is being written: theirs come first."""

    def __init__(self, *others: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._others = list(others)

    async def append(self, records: Iterable[Record]) -> None:
        if self._others:
            await self._others.pop(0)()
        await super().append(records)


async def test_the_last_record_of_an_input_is_its_newest_state(database: str) -> None:
    """Two others each publish a later state: one between our commit and our record, one during our check."""
    given = [an_input("sub_p", 1), an_input("sub_p", 2)]

    def run(status: str, when: float, end: float | None = None) -> Record:
        key = reserved.Reserved(INSTALLATION, given[0].input_id, "sub_p.c00001", 1, 1)
        return run_event("run_p", "batch_p", status, when, key=key, end=end)

    submitted = batch_event(events.BatchSubmitted, "sub_p", "sub_p.c00001", 1, 1, batch_id="batch_p", inputs=given)
    log = lay_out([submitted, run("PENDING", 2), run("PROCESSING", 3), run("PROCESSED", 5, end=4)], partitions=1)
    first, second, third = log["runs", 0]
    async with asyncpg.create_pool(
        database, min_size=2, init=tables.setup_connection, server_settings={"search_path": tables.SCHEMA}
    ) as pool:
        feed = Feed(SETTINGS, pool, LOG, MemoryLog())

        def another(record) -> Callable[[], Awaitable[None]]:
            async def applies_and_publishes() -> None:
                applied = await feed.apply([Poll("runs", 0, [record])])
                others = MemoryLog()
                await Publisher(pool, LOG, others, feed).publish(applied, {})
                published.records += others.records

            return applies_and_publishes

        published = Overtaken(another(second), another(third))
        applied = await feed.apply([Poll("batches", 0, log["batches", 0]), Poll("runs", 0, [first])])
        await Publisher(pool, LOG, published, feed).publish(applied, {})
        rows = await pool.fetch("select input_id, version, status from results")
    newest = published.newest("results")
    assert {row["input_id"]: row["status"] for row in rows} == {
        given[0].input_id: "PROCESSED",
        given[1].input_id: "SUBMITTED",
    }
    for row in rows:
        assert newest[row["input_id"].encode()]["version"] == row["version"]


async def test_a_poll_applied_earlier_is_published_in_limited_pages(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows read from the table are published once each, in pages of limited size."""
    given = [an_input("sub_p", n + 1) for n in range(6)]
    submitted = batch_event(events.BatchSubmitted, "sub_p", "sub_p.c00001", 1, 1, batch_id="batch_p", inputs=given)
    noise = random.Random(1)
    runs = [
        run_event(
            f"run_{n}",
            "batch_p",
            "PROCESSED",
            5,
            key=reserved.Reserved(INSTALLATION, one.input_id, "sub_p.c00001", 1, n + 1),
            end=4,
            noise=noise.randbytes(20_000).hex(),
        )
        for n, one in enumerate(given)
    ]
    polls = [Poll(*place, there) for place, there in lay_out([submitted, *runs], partitions=1).items()]
    monkeypatch.setattr(publisher_module, "_PAGE_BYTES", 50_000)
    async with asyncpg.create_pool(
        database, min_size=2, init=tables.setup_connection, server_settings={"search_path": tables.SCHEMA}
    ) as pool:
        feed = Feed(SETTINGS, pool, LOG, MemoryLog())
        await feed.apply(polls)
        published = InPages()
        await Publisher(pool, LOG, published, feed).publish(await feed.apply(polls), {})
    assert sorted(key for page in published.pages for key in page) == sorted(i.input_id.encode() for i in given)
    assert max(len(page) for page in published.pages) <= 2


class InPages(MemoryLog):
    """A log that remembers which results were appended together."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[list[bytes]] = []

    async def append(self, records: Iterable[Record]) -> None:
        written = list(records)
        self.pages.append([record.key for record in written if record.topic == "results"])
        await super().append(written)
