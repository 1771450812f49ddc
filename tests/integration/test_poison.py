"""A record that the tables refuse is quarantined with its reason, and the records beside it are applied."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.log.quarantine import quarantined
from everyrun.log.reading import Poll, end_offsets
from everyrun.projection import decode as decode_module
from everyrun.projection import tables
from everyrun.projection.feed import Feed, is_unstorable
from everyrun.settings import Settings
from tests.memory_log import MemoryLog
from tests.records import INSTALLATION, LOG, an_input, at, batch_event, lay_out, run_event

pytestmark = pytest.mark.stack


@asynccontextmanager
async def a_pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        database, min_size=1, max_size=2, init=tables.setup_connection, server_settings={"search_path": tables.SCHEMA}
    ) as pool:
        yield pool


async def feed_with(records: list[Record], pool: asyncpg.Pool, database: str, quarantine: MemoryLog) -> None:
    feed = Feed(Settings(postgres_dsn=database), pool, LOG, quarantine)
    log = lay_out(records, partitions=1)
    await asyncio.wait_for(feed.apply([Poll(*place, there) for place, there in log.items()]), 30)


def registered(submission: str, when: float, row: int) -> Record:
    given = [msgspec.structs.replace(an_input(submission, 1), metadata={"n": row})]
    return batch_event(
        events.BatchRegistered, submission, f"{submission}.c00001", 1, when, batch_id="batch_r", inputs=given
    )


async def test_a_second_registration_of_a_batch_is_quarantined(database: str) -> None:
    """A lost queue may allow two registrations: the first in the log counts, the other is quarantined."""
    records = [
        registered("sub_r", 1, 1),
        registered("sub_o", 2, 2),
        run_event("run_a", "batch_r", "PROCESSED", 5, key=None, metadata={"n": 1}, end=4),
    ]
    quarantine = MemoryLog()
    async with a_pool(database) as pool:
        await feed_with(records, pool, database, quarantine)
        applied = await pool.fetch("select topic, next_offset from applied_offsets where next_offset > 0 order by 1")
        rows = await pool.fetch("select input_id, run_id, status from results")
    assert [tuple(row) for row in applied] == [("batches", 2), ("runs", 1)]
    assert [tuple(row) for row in rows] == [(an_input("sub_r", 1).input_id, "run_a", "PROCESSED")]
    (kept,) = quarantine.records
    said = msgspec.json.decode(kept.value)
    assert (said["topic"], said["offset"]) == ("batches", 1)
    assert "batches_batch_id_key" in said["reason"]


def of_a_batch(*bad: Record) -> list[Record]:
    """A batch of one input, its run, and others before and after it."""
    given = [an_input("sub_p", 1)]
    key = reserved.Reserved(INSTALLATION, given[0].input_id, "sub_p.c00001", 1, 1)
    submitted = batch_event(events.BatchSubmitted, "sub_p", "sub_p.c00001", 1, 1, batch_id="batch_p", inputs=given)
    return [submitted, *bad, run_event("run_good", "batch_p", "PROCESSED", 5, key=key, end=4)]


def key_of(**more: Any) -> dict[str, Any]:
    """Metadata that anyone who can create runs in the workspace can write."""
    key = {"installation": INSTALLATION, "input": "sub_p:1", "chunk": "sub_p.c00001", "attempt": 1, "position": 1}
    return {reserved.KEY: key | more}


LONG = random.Random(1).randbytes(6000).hex()
HUGE = msgspec.Raw(b'{"credits":' + b"9" * 400 + b"}")


@pytest.mark.parametrize(
    "more", [{"attempt": 99_999_999_999}, {"attempt": 0}, {"position": 2**31}, {"chunk": LONG}, {"input": LONG}]
)
async def test_a_forged_reserved_key_binds_nothing(database: str, more: dict[str, Any]) -> None:
    records = of_a_batch(run_event("run_bad", "batch_p", "PROCESSED", 3, key=None, metadata=key_of(**more)))
    quarantine = MemoryLog()
    async with a_pool(database) as pool:
        await feed_with(records, pool, database, quarantine)
        assert await pool.fetchval("select run_id from results") == "run_good"
        unmatched = await pool.fetch("select run_id, reason, attempt from unmatched_runs")
    assert [tuple(row) for row in unmatched] == [("run_bad", "no_reserved_key", None)]
    assert quarantine.records == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (run_event(LONG, "batch_p", "PROCESSED", 3, key=None), "more than 255 characters"),
        (run_event("run_bad", LONG, "PROCESSED", 3, key=None), "more than 255 characters"),
        (run_event("run_bad", "batch_p", LONG, 3, key=None), "more than 255 characters"),
        (run_event("run_bad", "batch_p", "PROCESSED", 3, key=None, usage=HUGE), "too large"),
        # Nobody checks these before Postgres does: bisection finds the record.
        (
            batch_event(events.BatchReturned, LONG, "sub_o.c00001", 1, 1, reason="429"),
            "ProgramLimitExceededError (54000)",
        ),
        (batch_event(events.BatchReturned, "sub_o", "sub_o.c00001", 10**12, 1, reason="429"), "DataError"),
    ],
)
async def test_a_record_that_cannot_be_stored_is_quarantined_alone(database: str, bad: Record, reason: str) -> None:
    quarantine = MemoryLog()
    async with a_pool(database) as pool:
        await feed_with(of_a_batch(bad), pool, database, quarantine)
        assert await pool.fetchval("select run_id from results") == "run_good"
        applied = await pool.fetch("select topic, next_offset from applied_offsets where next_offset > 0 order by 1")
    said = [msgspec.json.decode(kept.value) for kept in quarantine.records]
    assert len({event["source"] for event in said}) == 1, "the bad one, however often it was tried"
    assert reason in said[0]["reason"]
    ends = {"batches": 1 + (bad.topic == "batches"), "runs": 1 + (bad.topic == "runs")}
    assert dict(map(tuple, applied)) == ends


async def test_a_value_that_copy_cannot_encode_is_quarantined(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """COPY raises Python's errors for a value that passed decoding; they must not end the process."""
    original = decode_module.run_of

    def with_a_surrogate(record: Any) -> Any:
        run = original(record)
        return msgspec.structs.replace(run, failure_message="\ud800") if run.run_id == "run_bad" else run

    monkeypatch.setattr(decode_module, "run_of", with_a_surrogate)
    quarantine = MemoryLog()
    async with a_pool(database) as pool:
        await feed_with(of_a_batch(run_event("run_bad", "batch_p", "FAILED", 3, key=None)), pool, database, quarantine)
        assert await pool.fetchval("select run_id from results") == "run_good"
    (kept,) = quarantine.records
    assert "UnicodeEncodeError" in msgspec.json.decode(kept.value)["reason"]


def test_an_outage_is_no_fault_of_a_record() -> None:
    """An untrusted certificate raises a ValueError. It must not send every record to the quarantine."""
    assert not is_unstorable(ssl.SSLCertVerificationError("self-signed"))
    assert not is_unstorable(asyncpg.OutOfMemoryError("later"))
    assert is_unstorable(OverflowError("value out of int32 range"))


async def test_kafka_accepts_the_largest_record_of_the_quarantine(settings: Settings) -> None:
    """Otherwise a poison record of that size would stall its partition."""
    raw = random.Random(1).randbytes(16 << 20)
    kept = quarantined(source="runs/0/7", topic="runs", reason="no", raw=raw, headers=[], time=at(1), service="/test")
    async with Producer(settings, linger_ms=5, compression="zstd") as producer:
        await asyncio.wait_for(producer.append([kept]), 60)
        await asyncio.wait_for(producer.append([kept, kept]), 60)
    assert (await end_offsets(settings, ["quarantine"]))["quarantine", 0] == 3
