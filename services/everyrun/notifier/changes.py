"""Publish what people change about receivers, as events in the log, for the account of who did what.

A change is stored in the same transaction as its row in ``receiver_changes``, so none goes unpublished, even if Kafka
is unavailable at that time.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal

import asyncpg

from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import ReceiverChanged
from everyrun.log.producer import Producer
from everyrun.redact import redact
from everyrun.settings import Settings
from everyrun.store.sql import Row, beside

_sql = beside(__file__, "receivers.sql")
#: The CloudEvents source of everything that the notifier writes.
SOURCE = "/everyrun/notifier"

Change = Literal["added", "paused", "resumed", "secret-rotated", "removed"]


async def note_change(held: Any, receiver_id: str, change: Change, by: str) -> None:
    """Store a change to be published. Call this in the transaction that makes the change."""
    await held.execute(_sql["note_change"], f"chg_{secrets.token_hex(10)}", receiver_id, change, by)


async def publish_changes(settings: Settings, pool: asyncpg.Pool) -> None:
    """Publish the changes that are not in the log yet. Raises aiokafka.errors.KafkaError and asyncpg's errors.

    If the process dies before a change is marked, it is published again, with the same id.
    """
    while rows := await pool.fetch(_sql["unannounced_changes"]):
        # People change receivers rarely, so no producer is kept open.
        async with Producer(settings) as producer:
            await producer.append([change_record(row) for row in rows])
        await pool.execute(_sql["mark_announced"], [row["change_id"] for row in rows])


def change_record(row: Row) -> Record:
    """Return the event of a row of the statement ``unannounced_changes``. Pure."""
    receiver_id, at = row["receiver_id"], timestamp(row["changed_at"])
    event = ReceiverChanged(
        receiver_id=receiver_id,
        change=row["change"],
        url=redact(row["url"]),
        events=list(row["events"]),
        workflows=list(row["workflows"]),
        changed_at=at,
        by=row["changed_by"],
    )
    return record("batches", event, key=receiver_id, id=f"{receiver_id}/{row['change_id']}", source=SOURCE, time=at)
