"""Retry and discard quarantined messages.

A retry interprets a message again with the current rules, and publishes it if it is understood. Every retry and every
discard is published as an event.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import asyncpg
import msgspec

from everyrun.log import observation
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import TOPICS, QuarantineDiscarded, QuarantineRetried
from everyrun.log.producer import Log
from everyrun.log.quarantine import RETRY_OF
from everyrun.projection.decode import InvalidRecordError, event_of, run_of
from everyrun.store.sql import beside
from everyrun.submission.dispatch.event_records import SOURCE

_sql = beside(__file__, "decisions.sql")


@dataclass
class QuarantinedMessage:
    """A message in quarantine, in the form of a log record, so that the same functions can decode it.

    A webhook in quarantine was never in the log; its ``topic`` is "webhook". ``time`` is the CloudEvents time of the
    event that put the message into quarantine. For a webhook, that is when the bridge received it.
    """

    source: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    time: str
    partition: int = 0
    offset: int = 0
    timestamp: int = 0


class Retried(NamedTuple):
    """The outcome of a retry.

    ``record`` is the record to publish, if there is one. ``detail`` is the topic of the record, or says why there is
    none.
    """

    outcome: Literal["published", "dropped", "not-understood"]
    detail: str
    record: Record | None = None


def retry_message(message: QuarantinedMessage) -> Retried:
    """Interpret a message with the current rules.

    Pure: the same message always gives the same record, with the same ids.
    """
    if message.topic == "webhook":
        try:
            meaning = observation.understand(message.value or b"", message.time)
        except observation.InvalidWebhookError as error:
            return Retried("not-understood", str(error))
        if meaning.record is None:
            return Retried("dropped", meaning.outcome)
        return Retried("published", meaning.record.topic, meaning.record)
    if message.topic not in TOPICS:
        return Retried("not-understood", f"Everyrun has no topic {message.topic}")
    try:
        if message.topic == "runs":
            run_of(message)
        else:
            event_of(message.topic, message)
    except InvalidRecordError as error:
        return Retried("not-understood", str(error))
    headers = [(name, value) for name, value in message.headers if name != RETRY_OF]
    headers.append((RETRY_OF, message.source.encode()))
    return Retried("published", message.topic, Record(message.topic, message.key or b"", message.value or b"", headers))


class Quarantine:
    """Publish decisions about quarantined messages as events. The processor reads the events and updates the tables."""

    def __init__(self, pool: asyncpg.Pool, log: Log) -> None:
        self._pool = pool
        self._log = log

    async def retry(self, sources: Sequence[str], by: str, reason: str) -> list[dict[str, Any]]:
        """Retry each message, and publish those that are understood; return the outcomes in the order of ``sources``.

        The log acknowledges the record of a message before the decision about the message is published. Raises
        aiokafka.errors.KafkaError and asyncpg's errors. It is then safe to retry all messages again, because that
        publishes the same records with the same ids.
        """
        outcomes = []
        for source in sources:
            row = await self._pool.fetchrow(_sql["quarantined"], source)
            if row is None:
                outcomes.append({"source": source, "outcome": "unknown", "detail": "there is no such message"})
                continue
            retried = retry_message(message_of(row))
            if retried.record is not None:
                await self._log.append([retried.record])
            event = QuarantineRetried(source, retried.outcome, retried.detail, by, reason)
            await self._publish(source, event)
            outcomes.append({"source": source, "outcome": retried.outcome, "detail": retried.detail})
        return outcomes

    async def discard(self, sources: Sequence[str], by: str, reason: str) -> list[dict[str, Any]]:
        """Mark each open message as discarded, and keep it; return the outcomes in the order of ``sources``."""
        outcomes = []
        for source in sources:
            state = await self._pool.fetchval(_sql["quarantine_state"], source)
            if state == "OPEN":
                await self._publish(source, QuarantineDiscarded(source, by, reason))
                outcomes.append({"source": source, "outcome": "discarded", "detail": "kept, marked as discarded"})
            elif state is None:
                outcomes.append({"source": source, "outcome": "unknown", "detail": "there is no such message"})
            else:
                outcomes.append({"source": source, "outcome": "not-open", "detail": f"it is {state} already"})
        return outcomes

    async def _publish(self, source: str, event: msgspec.Struct) -> None:
        now = timestamp(time.time())
        decision = record("quarantine", event, key=source, id=str(uuid.uuid4()), source=SOURCE, time=now)
        await self._log.append([decision])


def message_of(row: asyncpg.Record) -> QuarantinedMessage:
    """Return the message in a row of the table ``quarantine``."""
    return QuarantinedMessage(
        source=row["source"],
        topic=row["topic"],
        key=row["key"],
        value=row["raw"],
        headers=[(name, value.encode()) for name, value in row["headers"]],
        time=timestamp(row["first_seen"]),
    )
