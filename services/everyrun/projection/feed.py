"""Apply polls until they are in the tables: fill gaps, retry, wait for Postgres and Kafka, isolate poison records."""

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

#: Postgres or Kafka is unavailable.
UNAVAILABLE = (*POSTGRES_AWAY, KafkaError)
#: A schema, or everything in it, was dropped.
SCHEMA_GONE = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)

#: Errors after which the same transaction is retried.
RETRYABLE = (ConflictError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_TRIES = 20
#: More than one partition brings rows with these keys, so two transactions may insert the same one. Retried too.
_SHARED_KEYS = frozenset({"results_pkey", "duplicate_runs_pkey", "unmatched_runs_pkey"})
#: Postgres refuses the records themselves: SQLSTATE classes 22, 23 and 54 (too long for an index, nested too deeply).
_REFUSED_BY_POSTGRES = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
#: Python refuses them: a number beyond its column's type, or text that is not Unicode. COPY raises these as they are.
_REFUSED_BY_PYTHON = (OverflowError, ValueError)

Needed = Callable[[], Mapping[Partition, int]]
"""Returns how far each partition must be applied before anything more is."""


class Feed:
    """Applies polls to the tables of one database. Several feeds may run, in this process and in others.

    ``recreate_schema`` is called if the schema was dropped. Without it, the feed waits until another process does it.
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
        #: Records applied so far to fill gaps.
        self.backfilled = 0
        #: Why the last try failed, if Postgres or Kafka was unavailable; None after a success.
        self.blocked_by: str | None = None

    async def apply(self, polls: Sequence[Poll], needed: Needed = dict) -> list[Applied]:
        """Return what changed, once the polls are in the tables.

        First fills gaps from the log: before these polls, and up to what is ``needed``. So nothing is joined with
        tables that lag. Waits, and reports it in readyz, while Postgres or Kafka is unavailable. Raises ForeignLogError
        if the tables come from another log.
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
                # Separate from "database": one with a full disk answers every question but takes no rows.
                self._health.not_ready("applying", self.blocked_by)
                await self.report_unavailable(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    async def apply_once(self, polls: Sequence[Poll]) -> list[Applied]:
        """Apply the polls, and raise instead of waiting or filling gaps.

        Raises GapError, ForeignLogError, OSError, and errors of asyncpg and aiokafka.
        """
        return await self._apply_or_split(polls, dict)

    async def report_unavailable(self, error: Exception) -> None:
        """Report in readyz that the database is unavailable. Recreate the schema if that was dropped.

        A statement that timed out is only logged: the database is available.
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
        """Apply these offsets of each partition from the log. Publishes nothing."""
        for partition, (start, end) in sorted(gaps.items()):
            topic, number = partition
            _log.info("filling a gap from the log", topic=topic, partition=number, start=start, end=end)
            reached = start
            async for poll in read_polls(self._settings, partition, start, end):
                await self.apply([poll])
                self.backfilled += len(poll.records)
                reached = poll.end
            if reached < end:
                # The last offsets hold no records. Without this, the gap would remain for ever.
                async with self._pool.acquire() as connection:
                    await offsets.skip_empty(
                        cast(asyncpg.Connection, connection), partition, reached, end, self._identity
                    )

    async def _apply_or_split(
        self, polls: Sequence[Poll], needed: Needed, unstorable: dict[RecordKey, str] | None = None
    ) -> list[Applied]:
        """Apply in one transaction; if a record cannot be stored, in ever smaller ones, until it stands alone."""
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
    """Return True if a record caused the error, so that fewer records may succeed. Pure.

    An untrusted certificate raises a ValueError that is an OSError too: no record's fault.
    """
    refused_by_python = isinstance(error, _REFUSED_BY_PYTHON) and not isinstance(error, UNAVAILABLE)
    return isinstance(error, _REFUSED_BY_POSTGRES) or refused_by_python


def halves(polls: Sequence[Poll]) -> list[list[Poll]]:
    """Return smaller groups of the same records in order: single polls, then halves of a poll. Pure.

    A poll of one record is returned as it is.
    """
    if len(polls) > 1:
        return [[poll] for poll in polls]
    (poll,) = polls
    half = len(poll.records) // 2
    if half == 0:
        return [list(polls)]
    topic, partition, records = poll
    return [[Poll(topic, partition, records[:half])], [Poll(topic, partition, records[half:])]]
