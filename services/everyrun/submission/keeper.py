"""The queue's standing tasks: announcing submissions, resolving doubts, forgetting what need not be kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import asyncpg
import msgspec

from everyrun.failpoints import hit
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import SubmissionAccepted
from everyrun.log.producer import Log
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.submission import pauses
from everyrun.submission.batch_registration import announcement
from everyrun.submission.dispatch.dispatcher import AWAY, Dispatcher
from everyrun.submission.dispatch.event_records import SOURCE
from everyrun.submission.intake.rows import redact_file
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
#: Inputs that are redacted in one transaction.
_SLICE = 1000
#: A submission that is not settled is looked at again after a tenth of its age, within these bounds.
_LOOK_LEAST, _LOOK_MOST = timedelta(minutes=1), timedelta(hours=6)
_REMOVED = (
    "Its presigned links and passwords were removed {days:g} days after it was handed in "
    "(EVERYRUN_SECRETS_KEPT_UNSETTLED): what was not sent by then cannot be sent. Hand in again what is still waiting"
)


class Announcer:
    """Tells the log of each submission once it is in the queue: produce, then mark. Nothing is sent before."""

    def __init__(self, pool: asyncpg.Pool, log: Log, dispatcher: Dispatcher) -> None:
        self._pool = pool
        self._log = log
        self._dispatcher = dispatcher
        self.poke = asyncio.Event()

    async def announce(self) -> None:
        """Announce every submission that is not. One that the log does not take holds up none of the others.

        Raises asyncpg's errors.
        """
        failed: set[str] = set()
        while rows := await self._pool.fetch(_sql["unannounced"], sorted(failed)):
            for row in rows:
                try:
                    await self._announce(row)
                except Exception as error:
                    failed.add(row["submission_id"])
                    why, expected = f"{type(error).__name__}: {error}", isinstance(error, AWAY)
                    _log.warning(
                        "will announce it later", submission=row["submission_id"], error=why, exc_info=not expected
                    )

    async def _announce(self, row: asyncpg.Record) -> None:
        said = _accepted(row) if row["registered_batch"] is None else await self._registered(row)
        hit("announcer.before_produce")
        await self._log.append([said])
        hit("announcer.after_produce")
        await self._pool.execute(_sql["mark_announced"], row["submission_id"])
        hit("announcer.after_mark")
        self._dispatcher.poke.set()

    async def _registered(self, row: asyncpg.Record) -> Record:
        place = (row["submission_id"], 1, row["expected"])
        return announcement(row, await self._pool.fetch(_sql["chunk_inputs"], *place))


def _accepted(row: asyncpg.Record) -> Record:
    created = timestamp(row["created_at"])
    event = SubmissionAccepted(
        submission_id=row["submission_id"],
        workflow_id=row["workflow_id"],
        workflow_version=row["workflow_version"],
        priority=row["priority"],
        expected=row["expected"],
        batches=row["batches"],
        idempotency_key=row["idempotency_key"],
        content_hash=row["content_hash"].hex(),
        created_at=created,
    )
    key = row["submission_id"]
    return record("batches", event, key=key, id=f"{key}/submission-accepted", source=SOURCE, time=created)


def next_look(
    now: datetime, created_at: datetime, settled_at: datetime | None, kept: timedelta, kept_unsettled: timedelta
) -> datetime:
    """Return when the secrets of a submission are due to go, or when to look again. Pure.

    They are due if that is not after ``now``: ``kept`` after it settled, or ``kept_unsettled`` after it was handed in.
    One that is not settled is looked at ever more rarely.
    """
    if settled_at is not None:
        return settled_at + kept
    wait = min(max((now - created_at) / 10, _LOOK_LEAST), _LOOK_MOST)
    ends = created_at + kept_unsettled
    return ends if ends <= now else min(now + wait, ends)


async def forget(pool: asyncpg.Pool, log: Log, settings: Settings) -> None:
    """Take presigned URLs and passwords out of the queue, a set time after their submission settled.

    What is left of a file is what the log shows of it. A submission that does not settle loses its secrets too, a set
    time after it was handed in; if some of it is not sent by then, it is paused, with the reason. A slice of a
    submission is one transaction. A submission that fails holds up no other, and is retried later.

    Raises asyncpg's errors.
    """
    kept = timedelta(seconds=settings.secrets_kept)
    kept_unsettled = timedelta(seconds=settings.secrets_kept_unsettled)
    for row in await pool.fetch(_sql["to_redact"]):
        submission_id, now = row["submission_id"], row["now"]
        try:
            settled_at = await pool.fetchval(_sql["all_settled_at"], submission_id)
            due = next_look(now, row["created_at"], settled_at, kept, kept_unsettled)
            if due > now:
                await pool.execute(_sql["look_again"], submission_id, due)
                continue
            await _redact(pool, log, submission_id, row["expected"], kept_unsettled)
        except Exception as error:
            why, expected = f"{type(error).__name__}: {error}", isinstance(error, AWAY)
            _log.warning("will redact it later", submission=submission_id, error=why, exc_info=not expected)
            await pool.execute(_sql["look_again"], submission_id, now + _LOOK_LEAST)


async def _redact(pool: asyncpg.Pool, log: Log, submission_id: str, expected: int, kept_unsettled: timedelta) -> None:
    unsent = await pool.fetchval(_sql["has_unsent"], submission_id)
    for first in range(1, expected + 1, _SLICE):
        rows = await pool.fetch(_sql["files"], submission_id, first, first + _SLICE - 1)
        shown = {row["position"]: _shown(row["file"]) for row in rows}
        changed = {row["position"]: shown[row["position"]] for row in rows if shown[row["position"]] != row["file"]}
        if not changed:
            continue
        if unsent:
            async with pool.acquire() as connection, connection.transaction():
                why = _REMOVED.format(days=kept_unsettled / timedelta(days=1))
                await pauses.pause(connection, log, pauses.Pause("submission", submission_id), why, None)
            unsent = False
        # First of all: from now on nothing is claimed that lacks what it would be sent with.
        await pool.execute(_sql["begin_redaction"], submission_id)
        await pool.execute(_sql["redact_inputs"], submission_id, list(changed), list(changed.values()))
    await pool.execute(_sql["begin_redaction"], submission_id)
    await pool.execute(_sql["mark_redacted"], submission_id)


def _shown(file: str) -> str:
    """A file as the log shows it; the same text if there is nothing to take out."""
    given = msgspec.json.decode(file)
    shown = redact_file(given)
    return file if shown == given else msgspec.json.encode(shown).decode()


async def repeat(
    what: Callable[[], Awaitable[object]], every: float, stop: asyncio.Event, poke: asyncio.Event | None = None
) -> None:
    """Do it every so many seconds, and when poked, until ``stop``; what fails is said and tried again."""
    while not stop.is_set():
        try:
            await what()
        except AWAY as error:
            _log.warning("will try again", error=f"{type(error).__name__}: {error}")
        except Exception:
            _log.exception("will try again")
        waits = [asyncio.create_task(event.wait()) for event in (stop, poke) if event is not None]
        await asyncio.wait(waits, timeout=every, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        if poke is not None:
            poke.clear()
