"""``Feed``: gives polls to ``apply`` until they are in the tables, whatever is in the way."""

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
from everyrun.log.topics import LogIdentity
from everyrun.projection import offsets
from everyrun.projection.apply import Applied, apply
from everyrun.projection.decode import Poll
from everyrun.projection.decoded_polls import Poison
from everyrun.projection.offsets import GapError, Position, greatest
from everyrun.projection.reader import read_range
from everyrun.projection.schema import GONE
from everyrun.projection.write import ConflictError
from everyrun.settings import Settings
from everyrun.store.migrate import MigrationError
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.telemetry import log

_log = log(__name__)

#: Errors that a second try of the same transaction mends. Unique: two transactions brought the same new row.
_AGAIN = (
    ConflictError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)
_TRIES = 20
Needed = Callable[[], Mapping[Position, int]]
"""How far each partition must be applied, by now, before anything more is."""

#: Postgres or Kafka is away, for now.
AWAY = (*POSTGRES_AWAY, KafkaError)
#: Postgres refuses the records themselves: SQLSTATE classes 22, 23 and 54 (too long for an index, nested too deeply).
_REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
#: Python does: a number beyond its column's type, text that is not Unicode. COPY raises them as they are.
_NO_VALUE = (OverflowError, ValueError)
#: The rows of these keys are brought by more than one partition, so two transactions may meet in them.
_MET_IN = frozenset({"results_pkey", "duplicate_runs_pkey", "unmatched_runs_pkey"})


class Feed:
    """Applies polls to the tables of one database. Several may run, in this process and in others.

    ``remake`` makes the schema anew where it is gone; without it the feed waits until somebody else has.
    """

    def __init__(
        self,
        settings: Settings,
        pool: asyncpg.Pool,
        identity: LogIdentity,
        quarantine: Log,
        health: Health | None = None,
        remake: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._identity = identity
        self._quarantine = quarantine
        self._health = health or Health()
        self._remake = remake
        #: Records applied to fill gaps, so far.
        self.filled = 0
        #: Why the last try to apply failed, Postgres or Kafka being away; None once one went well.
        self.held_up: str | None = None

    async def apply(self, polls: Sequence[Poll], needed: Needed = dict) -> list[Applied]:
        """Return when the polls are in the tables, in order; what that changed.

        Gaps before them are filled from the log, and first of all what is ``needed``: how far each partition must be
        applied. So nothing new is joined with tables that are not yet what they were. Waits, and says so in readyz,
        while the database or Kafka is away. Raises ForeignLogError for tables of another log.
        """
        wait = 0.1
        gaps: dict[Position, tuple[int, int]] = {}
        while True:
            try:
                await self.fill(gaps)
                gaps = {}
                done = await self._apply_or_split(polls, needed)
                self._health.ready("database")
                self._health.ready("applying")
                self.held_up = None
                return done
            except GapError as error:
                ends = greatest({(poll.topic, poll.partition): poll.first for poll in polls}, needed())
                gaps = {place: (start, ends[place]) for place, start in error.gaps.items()}
            except AWAY as error:
                # Not ours to solve: the records stay unacknowledged until whoever is away is back.
                self.held_up = f"{type(error).__name__}: {error}"
                _log.warning("waiting to apply", error=self.held_up, seconds=wait)
                # A database that still answers, and takes nothing in (its disk is full), is otherwise in order.
                self._health.not_ready("applying", self.held_up)
                await self.mend(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)

    async def apply_once(self, polls: Sequence[Poll]) -> list[Applied]:
        """As ``apply``, for whoever would rather end than wait: what is in the way is raised.

        That is GapError, ForeignLogError, OSError, and errors of asyncpg and aiokafka.
        """
        return await self._apply_or_split(polls, dict)

    async def mend(self, error: Exception) -> None:
        """Say in readyz that the database is away; where the schema is gone, have it made anew.

        A statement that took too long is only logged: the database is there.
        """
        if is_slow(error):
            _log.warning("a statement took too long; trying again", error=str(error))
            return
        self._health.not_ready("database", f"{type(error).__name__}: {error}")
        if isinstance(error, GONE) and self._remake is not None:
            try:
                await self._remake()
            except MigrationError as failed:
                self._health.not_ready("database", str(failed))
                _log.warning("the schema could not be made anew", error=str(failed))

    async def fill(self, gaps: Mapping[Position, tuple[int, int]]) -> None:
        """Apply what lies in each partition from the first offset up to, without, the second. Publishes nothing."""
        for (topic, partition), (start, end) in sorted(gaps.items()):
            _log.info("filling a gap from the log", topic=topic, partition=partition, start=start, end=end)
            reached = start
            async for poll in read_range(self._settings, topic, partition, start, end):
                await self.apply([poll])
                self.filled += len(poll.records)
                reached = poll.end
            if reached < end:
                # Offsets without a record: else they would be missing for ever.
                async with self._pool.acquire() as connection:
                    await offsets.pass_over(
                        cast(asyncpg.Connection, connection), (topic, partition), reached, end, self._identity
                    )

    async def _apply_or_split(
        self, polls: Sequence[Poll], needed: Needed, refused: dict[tuple[str, int, int], str] | None = None
    ) -> list[Applied]:
        """Apply in one transaction; where a record cannot be stored, in smaller ones, down to that record."""
        try:
            return [await self._apply_again(polls, needed, refused)]
        except (*_REFUSED, *_NO_VALUE) as error:
            if not unstorable(error):
                raise
            parts = split(polls)
            if len(parts) == 1:
                record = polls[0].records[0]
                if refused:
                    raise
                key = (polls[0].topic, polls[0].partition, record.offset)
                code = f" ({error.sqlstate})" if isinstance(error, asyncpg.PostgresError) else ""
                reason = f"{type(error).__name__}{code}: {error}"
                return await self._apply_or_split(polls, needed, {key: reason})
            done = []
            for part in parts:
                done += await self._apply_or_split(part, needed)
            return done

    async def _apply_again(
        self, polls: Sequence[Poll], needed: Needed, refused: Mapping[tuple[str, int, int], str] | None
    ) -> Applied:
        for attempt in range(_TRIES):
            try:
                async with self._pool.acquire() as connection:
                    return await apply(
                        cast(asyncpg.Connection, connection),
                        polls,
                        self._identity,
                        self._set_aside,
                        refused,
                        needed(),
                    )
            except _AGAIN as error:
                _log.debug("applying again", error=str(error))
            except asyncpg.UniqueViolationError as error:
                if error.constraint_name not in _MET_IN or attempt == _TRIES - 1:
                    raise
            await asyncio.sleep(0.005 * attempt)
        raise ConnectionError(f"a transaction met others {_TRIES} times")

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
                service="/everyrun/processor",
            )
            for p in poison
        )


def unstorable(error: Exception) -> bool:
    """Whether an error of applying is of the records, so that fewer of them may do; else somebody is away. Pure.

    A certificate that is not trusted is a ValueError, too, and an OSError: no record's fault.
    """
    return isinstance(error, _REFUSED) or (isinstance(error, _NO_VALUE) and not isinstance(error, AWAY))


def split(polls: Sequence[Poll]) -> list[list[Poll]]:
    """Smaller groups of the same records in the same order: poll by poll, then halves; one record stays as it is."""
    if len(polls) > 1:
        return [[poll] for poll in polls]
    (poll,) = polls
    half = len(poll.records) // 2
    if half == 0:
        return [list(polls)]
    topic, partition, records = poll
    return [[Poll(topic, partition, records[:half])], [Poll(topic, partition, records[half:])]]
