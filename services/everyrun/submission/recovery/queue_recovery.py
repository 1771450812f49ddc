"""Recover a restored queue: apply to it what the log knows and the queue does not.

A chunk that has an attempt in the log is then never claimed as if it had none. So nothing is sent twice.
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
from everyrun.log.keys import retry_of
from everyrun.log.reading import LogRecord, end_offsets, read_polls
from everyrun.log.upcast import TooNewError, upcast
from everyrun.projection.offsets import ForeignLogError
from everyrun.projection.rules.merge import instant
from everyrun.redact import describe
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission.cancellations import storage as cancellation_storage
from everyrun.submission.decisions import pauses
from everyrun.submission.dispatch.protocol import FILES_LOST_UNSENT
from everyrun.submission.dispatch.transitions import chunk_state, flag_chunks, insert_parts
from everyrun.submission.intake.batch_registration import Registration, insert_registration, registration_of
from everyrun.submission.recovery.chunk_recovery import LoggedChunk, merge_logged, read_chunks
from everyrun.submission.recovery.restore import RecordAddress, restore_chunks, restore_submissions, retry_row
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "recovery.sql")
_decode = msgspec.json.Decoder(events.BatchEvent).decode

#: Added to the timeout of a call, in seconds. A call that began before its deadline has certainly ended when its
#: timeout and this margin have passed since the deadline.
CALL_MARGIN = 2.0


class QueueRecovery:
    """Keep the queue caught up with the log.

    The *incarnation* of a database changes when the database is restarted, restored or replaced, or fails over. Claims
    and decisions are valid only in the incarnation in which the queue was last caught up.
    """

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool
        #: The incarnation in which the queue was last caught up; None after ``invalidate``.
        self._incarnation: str | None = None
        #: The last incarnation in which the queue was caught up. ``invalidate`` does not clear it, because what a
        #: backup lacks needs to be restored only once in each incarnation.
        self._restored: str | None = None
        self._lock = asyncio.Lock()

    async def ensure_caught_up(self) -> str:
        """Return the database's incarnation, after catching up with the log if that is necessary.

        It is necessary if the incarnation changed since the last time, and after ``invalidate``. Raises
        aiokafka.errors.KafkaError, asyncpg's errors, and ForeignLogError.
        """
        now: str = await self._pool.fetchval(_sql["incarnation"])
        if now != self._incarnation:
            async with self._lock:
                while now != self._incarnation:
                    await catch_up(self._settings, self._pool, await topics.cluster_id(self._settings))
                    self._incarnation = self._restored = now
                    now = await self._pool.fetchval(_sql["incarnation"])
        return now

    async def ensure_restored(self) -> str:
        """Return the database's incarnation, after restoring from the log what the database lost.

        A database that was restored from a backup lacks what was stored after the backup. Kafka is needed only if the
        incarnation changed. Raises the errors of ``ensure_caught_up``.
        """
        now: str = await self._pool.fetchval(_sql["incarnation"])
        return now if now == self._restored else await self.ensure_caught_up()

    def invalidate(self) -> None:
        """Make the next claim read the log first. Call this after Kafka or Postgres did not answer.

        Something may have been published then, but not stored.
        """
        self._incarnation = None

    async def catch_up(self) -> None:
        """Read the log to its present end now, so that little is left to read when a claim needs it."""
        self.invalidate()
        await self.ensure_caught_up()


class NotCaughtUpError(Unavailable):
    """The queue cannot be caught up with the log now; the text says why and what to do."""

    retry_after = 5


async def require_restored(recovery: QueueRecovery) -> str:
    """Return the incarnation, as ``ensure_restored`` does. Raises NotCaughtUpError if the log cannot be read."""
    try:
        return await recovery.ensure_restored()
    except (KafkaError, ForeignLogError) as error:
        raise NotCaughtUpError(
            "the database was restarted or replaced, and the log cannot be read yet to find what it knows of this "
            f"upload; send it again in a moment ({describe(error)})"
        ) from None


async def catch_up(settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> int:
    """Read ``batches`` from the queue's position to its end, and apply what is new; return how many chunks changed.

    Chunks and submissions that the queue does not have are restored, and tokens that were revoked are revoked again.

    Raises aiokafka.errors.KafkaError and asyncpg.PostgresError. Raises ForeignLogError if this is not the log with
    which the queue was caught up before: it is in another Kafka, or the topic was deleted and created again since. This
    log does not know the queue's attempts.
    """
    while (changed := await _catch_up(settings, pool, cluster_id)) is None:
        _log.warning("the database was replaced while the log was read; reading the log again for the new one")
    return changed


async def _catch_up(settings: Settings, pool: asyncpg.Pool, cluster_id: str) -> int | None:
    """Catch up once; return the number of changed chunks, or None if the database was replaced while the log was read.

    The new database has other positions, so the log must be read again from those.
    """
    async with pool.acquire() as connection:
        incarnation = await connection.fetchval(_sql["incarnation"])
        positions = {row["partition"]: row for row in await connection.fetch(_sql["positions"])}
    ends = {partition: end for (_, partition), end in (await end_offsets(settings, ("batches",))).items()}
    _refuse_foreign_log(positions, ends, cluster_id)
    news = _LogNews()
    for partition, end in sorted(ends.items()):
        start = positions[partition]["next_offset"] if partition in positions else 0
        if start < end:
            async for poll in read_polls(settings, ("batches", partition), start, end):
                for record in poll.records:
                    news.add(record)
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_sql["incarnation"]) != incarnation:
            return None
        changed = await _apply(connection, settings, news)
        await connection.execute(_sql["mark_tokens_caught_up"])
        for partition, end in ends.items():
            await connection.execute(_sql["move_position"], partition, end, cluster_id)
    if changed:
        _log.warning("chunks were updated from the log", chunks=changed)
    return changed


def _refuse_foreign_log(positions: dict[int, asyncpg.Record], ends: dict[int, int], cluster_id: str) -> None:
    """Raise ForeignLogError if the queue was caught up with another log than this one."""
    for row in positions.values():
        if row["cluster_id"] != cluster_id:
            raise ForeignLogError(
                f"the queue belongs to Kafka cluster {row['cluster_id']}. This is {cluster_id}, which does not know "
                "what was sent. Give the services their own Kafka, or the queue that belongs to this one"
            )
    for partition, row in sorted(positions.items()):
        if row["next_offset"] > ends.get(partition, 0):
            raise ForeignLogError(
                f"the queue is ahead of the log: it has read partition {partition} of batches up to "
                f"{row['next_offset']}, but the partition ends at {ends.get(partition, 0)}. So the topic was created "
                "again or truncated, and does not know what was sent. Restore the topic. If it is lost for good, empty "
                "the table everyrun_queue.log_position: the queue then relies on its own states alone"
            )


async def _apply(connection: Any, settings: Settings, news: _LogNews) -> int:
    for registered in news.registered.values():
        await insert_registration(connection, registered, announced=True)
    await _restore(connection, settings, news)
    changed = await _update_chunks(connection, news.chunks, settings)
    for cancellation in news.cancellations.values():
        await cancellation_storage.store(connection, cancellation, settings)
    for target, pause in sorted(news.pauses.items()):
        await pauses.store(connection, target, pause)
    for revoked in news.revoked.values():
        values = (revoked.token_id, instant(revoked.revoked_at), revoked.by, revoked.reason)
        await connection.execute(_sql["revoke_token"], *values)
    return changed


async def _restore(connection: Any, settings: Settings, news: _LogNews) -> None:
    """Restore what the queue does not have. Must be called before the states of chunks are updated."""
    if await connection.fetchval(_sql["nothing_missing"], sorted(news.accepted), sorted(news.addresses)):
        return
    await connection.execute(_sql["lock_restoring"])
    submissions = await restore_submissions(connection, news.accepted.values())
    for event in news.retried.values():
        await connection.execute(_sql["restore_retry"], *retry_row(event))
    with_chunks = await restore_chunks(connection, settings, news.addresses)
    await connection.execute(_sql["count_lost"], sorted({*submissions, *with_chunks}))
    _log.warning("the queue was restored from the log", submissions=submissions, chunks_of=sorted(with_chunks))


async def _update_chunks(connection: Any, logged: dict[str, LoggedChunk], settings: Settings) -> int:
    """Update the states of chunks; return how many changed."""
    call_time = timedelta(seconds=settings.call_timeout + CALL_MARGIN)
    rows, changed = [], 0
    # Lock a chunk before inserting its parts, as a transition that cuts the chunk does. In another order, the two could
    # deadlock.
    cuts = {chunk: known for chunk, known in logged.items() if known.parts}
    if cuts:
        await connection.fetch(_sql["lock_chunks"], sorted(cuts))
        parts = await insert_parts(connection, [(known.submission_id or "", known.parts) for known in cuts.values()])
        # The inputs of these parts may have been restored from the log, which does not contain secrets.
        await connection.execute(_sql["hold_lost_files"], parts, FILES_LOST_UNSENT)
        await flag_chunks(connection, {known.submission_id or "" for known in cuts.values()}, settings)
    for row in await connection.fetch(_sql["lock_chunks"], sorted(logged)) if logged else ():
        before, known = chunk_state(row), logged[row["chunk"]]
        after = merge_logged(before, known)
        if after == before:
            continue
        changed += replace(after, announced=before.announced) != before
        deadline = None
        if after.state == "sending":
            begin_by = known.call_deadline or datetime.now(UTC)
            deadline = row["deadline"] if before.state == "sending" else begin_by + call_time
        values = (after.state, after.attempt, after.resends, after.batch_id, after.reason, deadline)
        rows.append((row["chunk"], *values, after.claimed, after.announced))
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await connection.execute(_sql["store_merged"], *columns, settings.doubt_window)
    return changed


class _LogNews:
    """The newest state of each chunk, pause and token in the part of the log that was read.

    Events with inputs are not kept, because the events of a million inputs would take gigabytes of memory.
    """

    def __init__(self) -> None:
        self.chunks: dict[str, LoggedChunk] = {}
        self.pauses: dict[pauses.PauseTarget, pauses.LoggedPause] = {}
        self.registered: dict[str, Registration] = {}
        self.accepted: dict[str, events.SubmissionAccepted] = {}
        self.revoked: dict[str, events.TokenRevoked] = {}
        #: By submission and number of the retry: an event of the retry, without its inputs.
        self.retried: dict[tuple[str, int], events.InputsRetried] = {}
        self.cancellations: dict[str, events.CancellationRequested] = {}
        #: For each chunk, the address of a record whose event contains the chunk's inputs.
        self.addresses: dict[str, RecordAddress] = {}

    def add(self, record: LogRecord) -> None:
        try:
            event = _decode(upcast(record.headers, record.value or b""))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TooNewError):
            return
        at = instant(header(record.headers, "ce_time")) or datetime.fromtimestamp(record.timestamp / 1000, UTC)
        read_chunks((event,), self.chunks)
        pauses.newest_pauses([(event, at, header(record.headers, "ce_id"))], self.pauses)
        if isinstance(event, events.BatchRegistered):
            self.registered.setdefault(event.batch_id, registration_of(event))
        elif isinstance(event, events.SubmissionAccepted):
            self.accepted[event.submission_id] = event
        elif isinstance(event, events.CancellationRequested):
            self.cancellations[event.cancellation_id] = event
        elif isinstance(event, events.TokenRevoked):
            self.revoked.setdefault(event.token_id, event)
        elif isinstance(event, events.InputsRetried):
            self.retried.setdefault((event.submission_id, event.retry), replace(event, inputs=[]))
            self.addresses.setdefault(event.chunk, RecordAddress(record.partition, record.offset))
        elif getattr(event, "inputs", None) and not retry_of(event.chunk):
            # Of the chunk of a retry, only inputs-retried says where its inputs are in the queue. The parts of such a
            # chunk are restored from its batch-cut.
            self.addresses.setdefault(event.chunk, RecordAddress(record.partition, record.offset))
