"""The queue never outruns the log: what the log knows and a restored queue does not is taken over.

So an input of a logged attempt is never claimed as if it were waiting, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
from aiokafka.errors import KafkaError
from msgspec.structs import replace

from everyrun.errors import Unavailable
from everyrun.log import events, topics
from everyrun.log.cloudevents import header
from everyrun.log.reading import LogRecord, end_offsets, read_polls
from everyrun.log.upcast import TooNewError, upcast
from everyrun.projection.offsets import ForeignLogError
from everyrun.projection.rules.merge import instant
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission import pauses
from everyrun.submission.batch_registration import Registration, keep, registration
from everyrun.submission.dispatch.protocol import FILES_LOST_UNSENT
from everyrun.submission.dispatch.transitions import insert_parts, state_of
from everyrun.submission.recovery.chunk_recovery import Logged, read_chunks, take_over
from everyrun.submission.recovery.restore import Place, restore_chunks, restore_submissions
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "../queue.sql")
_decode = msgspec.json.Decoder(events.BatchEvent).decode

#: A call that was begun before its deadline has ended this long after its time-out, in seconds.
MARGIN = 2.0


class Level:
    """Keeps the queue level with the log.

    A database has an *incarnation*, which is another one after a restart, a restore, a replacement, a failover. What
    is to be claimed or decided is so only in the incarnation that was last brought level.
    """

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._incarnation: str | None = None
        #: The incarnation that was level once: what the log held when it began is in it.
        self._restored: str | None = None
        self._one = asyncio.Lock()

    async def check(self) -> str:
        """The database's incarnation, once the queue is level with the log as it was when that incarnation began.

        Raises aiokafka.errors.KafkaError, asyncpg's errors, and ForeignLogError.
        """
        now: str = await self._pool.fetchval(_sql["incarnation"])
        if now != self._incarnation:
            async with self._one:
                while now != self._incarnation:
                    await catch_up(self._settings, self._pool, await topics.cluster_id(self._settings))
                    self._incarnation = self._restored = now
                    now = await self._pool.fetchval(_sql["incarnation"])
        return now

    async def restored(self) -> str:
        """Return the database's incarnation, once all that it lost to a restored backup was read from the log.

        It needs Kafka only after the database was restarted or replaced. Raises what ``check`` raises.
        """
        now: str = await self._pool.fetchval(_sql["incarnation"])
        return now if now == self._restored else await self.check()

    def lost_touch(self) -> None:
        """Kafka or Postgres did not answer: what was said may not have been kept, so the log is read again first."""
        self._incarnation = None

    async def advance(self) -> None:
        """Read the log to its end now, so that there is little to read when it must be."""
        self.lost_touch()
        await self.check()


class NotLevelError(Unavailable):
    """What the log knows and the queue may not could not be read now; the text says why and what to do."""

    retry_after = 5


async def restored(level: Level) -> str:
    """Return the incarnation as ``Level.restored`` does. Raises NotLevelError if Kafka does not answer."""
    try:
        return await level.restored()
    except (KafkaError, ForeignLogError) as error:
        raise NotLevelError(
            "the database was restarted or replaced, and the log cannot be read yet to see what it knows of this "
            f"upload; send it again in a moment ({describe(error)})"
        ) from None


async def catch_up(settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> int:
    """Read ``batches`` from where the queue last was to its end, and take over what is new; how many chunks changed.

    What the queue does not have at all is put back, and revoked tokens are revoked.

    Raises aiokafka.errors.KafkaError and asyncpg.PostgresError; ForeignLogError where the queue was level with another
    log, of another Kafka or of a topic that was made anew since: what that one knew of attempts is not known here.
    """
    while (changed := await _catch_up(settings, pool, cluster_id)) is None:
        _log.warning("the database was replaced while the log was read: it is read again for the new one")
    return changed


async def _catch_up(settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> int | None:
    """Catch up once; None if the database was replaced meanwhile: its positions are then others."""
    async with pool.acquire() as connection:
        incarnation = await connection.fetchval(_sql["incarnation"])
        known = {row["partition"]: row for row in await connection.fetch(_sql["positions"])}
    for row in known.values():
        if row["cluster_id"] != cluster_id:
            raise ForeignLogError(
                f"the queue was sent from with Kafka cluster {row['cluster_id']}, and this is {cluster_id}: what was "
                "sent is not known here. Give the services their own Kafka, or the queue that belongs to this one"
            )
    ends = {partition: end for (_, partition), end in (await end_offsets(settings, ("batches",))).items()}
    for partition, row in sorted(known.items()):
        if row["next_offset"] > ends.get(partition, 0):
            raise ForeignLogError(
                f"the queue is ahead of the log: it has read partition {partition} of batches up to "
                f"{row['next_offset']}, which ends at {ends.get(partition, 0)}, so the topic was made anew or cut off, "
                "and what was sent is not known here. Bring the topic back; where it is gone for good, empty the table "
                "everyrun_queue.log_position, and the queue goes by what it knows itself"
            )
    news = _News()
    for partition, end in sorted(ends.items()):
        start = known[partition]["next_offset"] if partition in known else 0
        if start < end:
            async for poll in read_polls(settings, ("batches", partition), start, end):
                for record in poll.records:
                    news.add(record)
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_sql["incarnation"]) != incarnation:
            return None
        for given in news.registered.values():
            await keep(connection, given, announced=True)
        await _restore(connection, settings, news)
        changed = await _take_over(connection, news.chunks, settings)
        for what, said in sorted(news.pauses.items()):
            if said.paused:
                await connection.execute(_sql["pause"], *what, said.reason, said.by, said.at)
            else:
                await connection.execute(_sql["resume"], *what)
        for revoked in news.revoked.values():
            values = (revoked.token_id, instant(revoked.revoked_at), revoked.by, revoked.reason)
            await connection.execute(_sql["revoke_token"], *values)
        await connection.execute(_sql["tokens_are_level"])
        for partition, end in ends.items():
            await connection.execute(_sql["move_position"], partition, end, cluster_id)
    if changed:
        _log.warning("the log knew what the queue did not", chunks=changed)
    return changed


async def _restore(connection: Any, settings: Settings, news: _News) -> None:
    """Put back what the queue does not have, before the states of chunks are taken over."""
    if await connection.fetchval(_sql["nothing_missing"], sorted(news.accepted), sorted(news.places)):
        return
    await connection.execute(_sql["lock_restoring"])
    submissions = await restore_submissions(connection, news.accepted.values())
    touched = await restore_chunks(connection, settings, news.places)
    await connection.execute(_sql["count_lost"], sorted({*submissions, *touched}))
    _log.warning("the queue was put back from the log", submissions=submissions, chunks_of=sorted(touched))


async def _take_over(connection: Any, logged: dict[str, Logged], settings: Settings) -> int:
    call_time = timedelta(seconds=settings.call_timeout + MARGIN)
    rows, changed = [], 0
    # A chunk is locked before its parts are made, as by whoever cuts it: else each could wait for the other.
    cuts = {chunk: said for chunk, said in logged.items() if said.parts}
    if cuts:
        await connection.fetch(_sql["lock_chunks"], sorted(cuts))
        made = await insert_parts(connection, [(said.submission_id or "", said.parts) for said in cuts.values()])
        # Their inputs may have been put back from the log as well.
        await connection.execute(_sql["hold_lost_files"], made, FILES_LOST_UNSENT)
    for row in await connection.fetch(_sql["lock_chunks"], sorted(logged)) if logged else ():
        before, said = state_of(row), logged[row["chunk"]]
        after = take_over(before, said)
        if after == before:
            continue
        changed += replace(after, announced=before.announced) != before
        deadline = None
        if after.state == "sending":
            begin_by = said.call_deadline or datetime.now(UTC)
            deadline = row["deadline"] if before.state == "sending" else begin_by + call_time
        values = (after.state, after.attempt, after.resends, after.batch_id, after.reason, deadline)
        rows.append((row["chunk"], *values, after.claimed, after.announced))
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await connection.execute(_sql["take_over"], *columns, settings.doubt_window)
    return changed


class _News:
    """What the log says, of each chunk and pause at its newest. The events themselves, with their inputs, are not kept:
    of a million inputs they would be gigabytes."""

    def __init__(self) -> None:
        self.chunks: dict[str, Logged] = {}
        self.pauses: dict[pauses.Pause, pauses.Said] = {}
        self.registered: dict[str, Registration] = {}
        self.accepted: dict[str, events.SubmissionAccepted] = {}
        self.revoked: dict[str, events.TokenRevoked] = {}
        #: Where an event with the inputs of each chunk lies.
        self.places: dict[str, Place] = {}

    def add(self, record: LogRecord) -> None:
        try:
            event = _decode(upcast(record.headers, record.value or b""))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TooNewError):
            return
        at = instant(header(record.headers, "ce_time")) or datetime.fromtimestamp(record.timestamp / 1000, UTC)
        read_chunks((event,), self.chunks)
        pauses.newest([(event, at, header(record.headers, "ce_id"))], self.pauses)
        if isinstance(event, events.BatchRegistered):
            self.registered.setdefault(event.batch_id, registration(event))
        elif isinstance(event, events.SubmissionAccepted):
            self.accepted[event.submission_id] = event
        elif isinstance(event, events.TokenRevoked):
            self.revoked.setdefault(event.token_id, event)
        elif getattr(event, "inputs", None):
            self.places.setdefault(event.chunk, Place(record.partition, record.offset))
