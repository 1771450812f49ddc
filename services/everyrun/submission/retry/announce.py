"""Announce retries: publish an event for each chunk of a retry, then let the dispatchers claim it."""

from __future__ import annotations

import asyncio

import asyncpg
import msgspec

from everyrun.failpoints import hit
from everyrun.log import events
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.keys import lineage
from everyrun.log.producer import Log
from everyrun.store.sql import Row, beside
from everyrun.submission.dispatch.event_records import SOURCE, redacted
from everyrun.submission.dispatch.transitions import read_inputs

_sql = beside(__file__, "retry.sql")


async def announce_retries(pool: asyncpg.Pool, log: Log, dispatch_wake: asyncio.Event) -> None:
    """Announce the chunks of retries that are not announced yet, and set ``dispatch_wake`` after each group of them.

    The event of a chunk is in the log before the chunk can be claimed. If the process dies in between, the same event
    is published again. Raises aiokafka.errors.KafkaError and asyncpg's errors.
    """
    last = ""
    while rows := await pool.fetch(_sql["unannounced"], last):
        announced = []
        for row in rows:
            inputs = await read_inputs(pool, row["submission_id"], row["first_position"], row["last_position"])
            announced.append(retried_record(row, inputs))
        hit("retry.before_produce")
        await log.append(announced)
        hit("retry.after_produce")
        await pool.execute(_sql["mark_announced"], [row["chunk"] for row in rows])
        dispatch_wake.set()
        last = rows[-1]["chunk"]


def retried_record(row: Row, inputs: list[events.Input]) -> Record:
    """Return the event that gives the inputs of a retry's chunk a new try. Pure."""
    requested = timestamp(row["created_at"])
    event = events.InputsRetried(
        submission_id=row["submission_id"],
        chunk=row["chunk"],
        retry=row["retry"],
        workflow_id=row["workflow_id"],
        first_position=row["first_position"],
        total=row["total"],
        filter=msgspec.json.decode(row["chosen"], type=events.RetryFilter),
        requested_at=requested,
        by=row["requested_by"],
        reason=row["reason"],
        inputs=redacted(inputs),
    )
    chunk = row["chunk"]
    identifier = f"{chunk}/inputs-retried"
    return record("batches", event, key=lineage(chunk), id=identifier, source=SOURCE, time=requested, subject=chunk)
