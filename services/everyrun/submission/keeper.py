"""The queue's standing tasks: announcing submissions, resolving doubts, forgetting what need not be kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg

from everyrun.failpoints import hit
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import SubmissionAccepted
from everyrun.log.producer import Log
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY
from everyrun.store.sql import beside
from everyrun.submission.dispatcher import AWAY, Dispatcher
from everyrun.submission.registering import announcement
from everyrun.submission.saying import SOURCE
from everyrun.telemetry import log

_log = log(__name__)
_sql = beside(__file__, "queue.sql")
#: Inputs that are redacted in one transaction.
_SLICE = 10_000


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
        created_at=created,
    )
    key = row["submission_id"]
    return record("batches", event, key=key, id=f"{key}/submission-accepted", source=SOURCE, time=created)


async def forget(pool: asyncpg.Pool, settings: Settings) -> None:
    """Take files (presigned URLs, passwords) out of the queue, a set time after their submission settled.

    A slice of a submission at a time: of a million inputs no statement ends in time. One that fails holds up no other,
    and goes on the next time. Raises asyncpg's errors.
    """
    for row in await pool.fetch(_sql["to_redact"], timedelta(seconds=settings.secrets_kept)):
        submission_id = row["submission_id"]
        try:
            for first in range(1, row["expected"] + 1, _SLICE):
                await pool.execute(_sql["redact_inputs"], submission_id, first, first + _SLICE - 1)
            await pool.execute(_sql["mark_redacted"], submission_id)
        except POSTGRES_AWAY as error:
            _log.warning("will redact it later", submission=submission_id, error=f"{type(error).__name__}: {error}")


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
