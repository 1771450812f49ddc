"""Working the quarantine: what a message is today, publishing it where it belongs, saying what was decided."""

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

_sql = beside(__file__, "queue.sql")


@dataclass
class Quarantined:
    """A message as the quarantine keeps it, to be read as a record of the log; a webhook has no place in it.

    ``time`` is the CloudEvents time it was put there with: of a webhook, when the bridge received it.
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


class Again(NamedTuple):
    """What a message is today: the record to publish, nothing to publish, or why it is still not understood."""

    outcome: Literal["published", "dropped", "not-understood"]
    detail: str
    record: Record | None = None


def again(message: Quarantined) -> Again:
    """Look at a message again, with the rules of today. Pure; the same message gives the same record, ids included."""
    if message.topic == "webhook":
        try:
            meaning = observation.understand(message.value or b"", message.time)
        except observation.InvalidWebhookError as error:
            return Again("not-understood", str(error))
        if meaning.record is None:
            return Again("dropped", meaning.outcome)
        return Again("published", meaning.record.topic, meaning.record)
    if message.topic not in TOPICS:
        return Again("not-understood", f"the topic {message.topic} is none of ours")
    try:
        if message.topic == "runs":
            run_of(message)
        else:
            event_of(message.topic, message)
    except InvalidRecordError as error:
        return Again("not-understood", str(error))
    headers = [(name, value) for name, value in message.headers if name != RETRY_OF]
    headers.append((RETRY_OF, message.source.encode()))
    return Again("published", message.topic, Record(message.topic, message.key or b"", message.value or b"", headers))


class Quarantine:
    """Decisions about quarantined messages, each an event; the tables follow."""

    def __init__(self, pool: asyncpg.Pool, log: Log) -> None:
        self._pool = pool
        self._log = log

    async def retry(self, sources: Sequence[str], by: str, reason: str) -> list[dict[str, Any]]:
        """Look at each message again and publish what is understood; what became of each, in order.

        A record is acknowledged before the decision is said. Raises aiokafka.errors.KafkaError and asyncpg's errors:
        to retry everything then is right, it publishes the same records under the same ids.
        """
        done = []
        for source in sources:
            row = await self._pool.fetchrow(_sql["quarantined"], source)
            if row is None:
                done.append({"source": source, "outcome": "unknown", "detail": "there is no such message"})
                continue
            found = again(message_of(row))
            if found.record is not None:
                await self._log.append([found.record])
            event = QuarantineRetried(source, found.outcome, found.detail, by, reason)
            await self._say(source, event)
            done.append({"source": source, "outcome": found.outcome, "detail": found.detail})
        return done

    async def discard(self, sources: Sequence[str], by: str, reason: str) -> list[dict[str, Any]]:
        """Say that nothing more is done about each open message; what became of each, in order. None is deleted."""
        done = []
        for source in sources:
            state = await self._pool.fetchval(_sql["quarantine_state"], source)
            if state == "OPEN":
                await self._say(source, QuarantineDiscarded(source, by, reason))
                done.append({"source": source, "outcome": "discarded", "detail": "kept, and marked"})
            elif state is None:
                done.append({"source": source, "outcome": "unknown", "detail": "there is no such message"})
            else:
                done.append({"source": source, "outcome": "not-open", "detail": f"it is {state} already"})
        return done

    async def _say(self, source: str, event: msgspec.Struct) -> None:
        now = timestamp(time.time())
        said = record("quarantine", event, key=source, id=str(uuid.uuid4()), source=SOURCE, time=now)
        await self._log.append([said])


def message_of(row: asyncpg.Record) -> Quarantined:
    """A row of the table ``quarantine``."""
    return Quarantined(
        source=row["source"],
        topic=row["topic"],
        key=row["key"],
        value=row["raw"],
        headers=[(name, value.encode()) for name, value in row["headers"]],
        time=timestamp(row["first_seen"]),
    )
