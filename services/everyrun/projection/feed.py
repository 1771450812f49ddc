"""Apply polls, with retries: fill gaps, wait for Postgres and Kafka, and set aside records that cannot be stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

import asyncpg
from aiokafka.errors import KafkaError

from everyrun.health import Health
from everyrun.log.cloudevents import header, timestamp
from everyrun.log.producer import Log
from everyrun.log.quarantine import RETRY_OF, quarantined
from everyrun.log.reading import OffsetRange, Partition, Poll, RecordKey, read_polls
from everyrun.log.topics import LogIdentity
from everyrun.projection import offsets
from everyrun.projection.apply import Applied, apply
from everyrun.projection.decode import Poison, Unstorable
from everyrun.projection.offsets import GapError, greatest
from everyrun.projection.output_records import SOURCE
from everyrun.projection.tables import ConflictError
from everyrun.settings import Settings
from everyrun.store.migrate import MigrationError
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.telemetry import log

_log = log(__name__)

#: Errors which mean that Postgres or Kafka is unavailable.
UNAVAILABLE = (*POSTGRES_AWAY, KafkaError)
#: Errors which mean that the schema, or every table in it, was dropped.
SCHEMA_GONE = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)

#: Errors that a conflict with another transaction causes. The transaction is retried.
RETRYABLE = (ConflictError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_TRIES = 20
#: Primary keys of tables whose rows can come from several partitions. Two transactions may insert the same key at the
#: same time. One of them then fails, and is retried.
_SHARED_KEYS = frozenset({"results_pkey", "other_runs_pkey", "unmatched_runs_pkey"})
#: Errors by which Postgres refuses a record: SQLSTATE classes 22, 23 and 54 (for example, a value is too long for an
#: index or nested too deeply).
_REFUSED_BY_POSTGRES = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
#: Errors by which Python refuses a record before it reaches Postgres: a number is too large for the type of its column,
#: or a text is not valid Unicode. asyncpg's COPY raises them unchanged, not as a DataError.
_REFUSED_BY_PYTHON = (OverflowError, ValueError)

Needed = Callable[[], Mapping[Partition, int]]
"""A function that returns an offset for each partition. Earlier records must be applied before new polls are."""


class Feed:
    """Applies polls to the tables of one database. Several feeds may run at the same time, also in other processes.

    If the schema was dropped, the feed calls ``recreate_schema``. Without this function, the feed waits until another
    process has recreated the schema.
    """

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        identity: LogIdentity,
        quarantine: Log,
        health: Health | None = None,
        recreate_schema: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._identity = identity
        self._quarantine = quarantine
        self._health = health or Health()
        self._recreate_schema = recreate_schema
        #: Number of records that were applied to fill gaps, since this feed was created.
        self.backfilled = 0
        #: Why the last try failed: the error of Postgres or Kafka. None if the last try succeeded.
        self.blocked_by: str | None = None

    async def apply(self, polls: Sequence[Poll], needed: Needed = dict) -> list[Applied]:
        """Apply the polls to the tables. Return the ids of everything that changed.

        If the tables lack earlier records, first read these from the log and apply them: the records before these
        polls, and the records before the offsets that ``needed`` returns. Otherwise a run could be applied before its
        batch, and would match no input. While Postgres or Kafka is unavailable, report the outage in readyz, and retry.

        Raises ForeignLogError if the tables were made from another log.
        """
        wait = 0.1
        gaps: dict[Partition, OffsetRange] = {}
        while True:
            try:
                await self.fill(gaps)
                gaps = {}
                done = await self._apply_or_split(polls, needed)
                self._health.ready("database")
                self._health.ready("applying")
                self.blocked_by = None
                return done
            except GapError as error:
                ends = greatest({(poll.topic, poll.partition): poll.first for poll in polls}, needed())
                gaps = {partition: (start, ends[partition]) for partition, start in error.gaps.items()}
            except UNAVAILABLE as error:
                self.blocked_by = f"{type(error).__name__}: {error}"
                _log.warning("cannot apply records; will retry", error=self.blocked_by, seconds=wait)
                # Report this as "applying", not as "database": a database with a full disk still answers queries.
                self._health.not_ready("applying", self.blocked_by)
                await self.report_unavailable(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    async def apply_once(self, polls: Sequence[Poll]) -> list[Applied]:
        """Apply the polls without retries. If records are missing or a service is unavailable, raise an error.

        Raises GapError, ForeignLogError, OSError, and errors of asyncpg and aiokafka.
        """
        return await self._apply_or_split(polls, dict)

    async def report_unavailable(self, error: Exception) -> None:
        """Report in readyz that the database is unavailable. If the schema was dropped, recreate it.

        If the error is only the timeout of a statement, the database is available. Then log the error, and do no more.
        """
        if is_slow(error):
            _log.warning("a statement timed out; will retry", error=str(error))
            return
        self._health.not_ready("database", f"{type(error).__name__}: {error}")
        if isinstance(error, SCHEMA_GONE) and self._recreate_schema is not None:
            try:
                await self._recreate_schema()
            except MigrationError as failed:
                self._health.not_ready("database", str(failed))
                _log.warning("the schema could not be recreated", error=str(failed))

    async def fill(self, gaps: Mapping[Partition, OffsetRange]) -> None:
        """Read the records in these ranges of offsets from the log, and apply them. Do not publish results."""
        for partition, (start, end) in sorted(gaps.items()):
            topic, number = partition
            _log.info("filling a gap from the log", topic=topic, partition=number, start=start, end=end)
            reached = start
            async for poll in read_polls(self._settings, partition, start, end):
                await self.apply([poll])
                self.backfilled += len(poll.records)
                reached = poll.end
            if reached < end:
                # The last offsets of the range hold no records, so no poll reaches the end. Advance over these offsets.
                # Otherwise, the gap would never close.
                async with self._pool.acquire() as connection:
                    await offsets.skip_empty(
                        cast(asyncpg.Connection, connection), partition, reached, end, self._identity
                    )

    async def _apply_or_split(
        self, polls: Sequence[Poll], needed: Needed, unstorable: dict[RecordKey, str] | None = None
    ) -> list[Applied]:
        """Apply the polls in one transaction.

        If a record cannot be stored, split the polls into smaller and smaller transactions, until that record is alone.
        Then write it to the quarantine.
        """
        try:
            return [await self._apply_with_retries(polls, needed, unstorable)]
        except (*_REFUSED_BY_POSTGRES, *_REFUSED_BY_PYTHON) as error:
            if not is_unstorable(error):
                raise
            parts = halves(polls)
            if len(parts) == 1:
                record = polls[0].records[0]
                if unstorable:
                    raise
                key = (polls[0].topic, polls[0].partition, record.offset)
                code = f" ({error.sqlstate})" if isinstance(error, asyncpg.PostgresError) else ""
                reason = f"{type(error).__name__}{code}: {error}"
                return await self._apply_or_split(polls, needed, {key: reason})
            done = []
            for part in parts:
                done += await self._apply_or_split(part, needed)
            return done

    async def _apply_with_retries(
        self, polls: Sequence[Poll], needed: Needed, unstorable: Unstorable | None
    ) -> Applied:
        for attempt in range(_TRIES):
            try:
                async with self._pool.acquire() as connection:
                    return await apply(
                        cast(asyncpg.Connection, connection),
                        polls,
                        self._identity,
                        self._set_aside,
                        unstorable,
                        needed(),
                    )
            except RETRYABLE as error:
                _log.debug("retrying a transaction", error=str(error))
            except asyncpg.UniqueViolationError as error:
                if error.constraint_name not in _SHARED_KEYS or attempt == _TRIES - 1:
                    raise
            await asyncio.sleep(0.005 * attempt)
        raise ConnectionError(f"a transaction conflicted with others {_TRIES} times")

    async def _set_aside(self, poison: Sequence[Poison]) -> None:
        await self._quarantine.append(
            quarantined(
                source=header(p.record.headers, RETRY_OF) or f"{p.topic}/{p.record.partition}/{p.record.offset}",
                topic=p.topic,
                partition=p.record.partition,
                offset=p.record.offset,
                message_key=p.record.key,
                reason=p.reason,
                raw=p.record.value or b"",
                headers=[(name, value.decode("utf-8", "replace")) for name, value in p.record.headers],
                time=timestamp(p.record.timestamp / 1000),
                service=SOURCE,
            )
            for p in poison
        )


def is_unstorable(error: Exception) -> bool:
    """Return True if a record caused the error, so that a transaction without this record may succeed. Pure.

    An error of an unavailable service is never caused by a record, even if it is a ValueError. For example, Python
    raises an error that is both a ValueError and an OSError if it does not trust a certificate.
    """
    refused_by_python = isinstance(error, _REFUSED_BY_PYTHON) and not isinstance(error, UNAVAILABLE)
    return isinstance(error, _REFUSED_BY_POSTGRES) or refused_by_python


def halves(polls: Sequence[Poll]) -> list[list[Poll]]:
    """Split polls into smaller groups, without changing the order of the records. Pure.

    Several polls are split into single polls. A single poll is split into two halves. A poll of one record stays whole.
    """
    if len(polls) > 1:
        return [[poll] for poll in polls]
    (poll,) = polls
    half = len(poll.records) // 2
    if half == 0:
        return [list(polls)]
    topic, partition, records = poll
    return [[Poll(topic, partition, records[:half])], [Poll(topic, partition, records[half:])]]
