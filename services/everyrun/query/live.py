"""Define the route that streams a submission's progress as server-sent events."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import asyncpg
import msgspec
from fastapi import FastAPI, Header
from fastapi.responses import StreamingResponse

from everyrun.http import scope
from everyrun.openapi import answers
from everyrun.query.counts import counts_in, submission_of
from everyrun.query.gate import BusyError
from everyrun.query.paging import check_text
from everyrun.query.report import standing
from everyrun.settings import Settings
from everyrun.store.pool import POSTGRES_AWAY

#: Seconds between two looks at the progress, and so the least time between two events.
_EVERY = 1.0
#: After this many seconds without an event, a comment is sent, so that no proxy closes the connection.
_KEEP_ALIVE = 15.0
#: A stream ends after this many seconds. The client connects again, and its token is checked again.
_LONGEST = 600.0
#: Maximum number of streams that a process serves at the same time.
_MOST = 200
#: Milliseconds after which a browser connects again, if the stream broke off, or if the submission was settled.
_RETRY, _RETRY_SETTLED = 1000, 60_000
#: The parts of the progress whose change is an event. The others change with the clock.
_WATCHED = ("expected", "settled", "by_status", "in_transit", "needs_person")


async def progress_of(pool: asyncpg.Pool, settings: Settings, submission_id: str) -> dict[str, Any]:
    """Return the progress of a submission from stored counters. Raises NotFound."""
    async with pool.acquire() as c, c.transaction(isolation="repeatable_read", readonly=True):
        submission = await submission_of(c, submission_id)
        counts = await counts_in(c, settings, submission)
    return {"submission_id": submission_id, **standing(submission["expected"], counts)}


class _Latest:
    """The latest progress of the submissions that are watched. It is read once for all streams of a submission."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._reads: dict[str, tuple[float, asyncio.Task[dict[str, Any]]]] = {}

    async def get(self, submission_id: str) -> dict[str, Any]:
        """Return a progress that is at most _EVERY seconds old. Raises NotFound, and asyncpg's errors."""
        now = time.monotonic()
        self._reads = {name: read for name, read in self._reads.items() if now - read[0] < _EVERY}
        if submission_id not in self._reads:
            read = asyncio.create_task(progress_of(self._pool, self._settings, submission_id))
            self._reads[submission_id] = (now, read)
        # One client that goes away must not cancel the read of the others.
        return await asyncio.shield(self._reads[submission_id][1])


def live_routes(app: FastAPI, settings: Settings, pool: asyncpg.Pool, stopping: asyncio.Event) -> None:
    """Add the route ``/v1/submissions/{submission_id}/events``. Its streams end when ``stopping`` is set."""
    latest = _Latest(settings, pool)
    streams = 0

    @app.get("/v1/submissions/{submission_id}/events", dependencies=[scope("read")])
    @answers(None, {404: "NOT_FOUND: there is no such submission."}, streams=["text/event-stream"])
    async def events(
        submission_id: str, last_event_id: Annotated[str | None, Header(max_length=100)] = None
    ) -> StreamingResponse:
        """Stream a submission's progress as server-sent events, until every input is settled.

        The data of each event is the same JSON as that of `/progress`. The event `progress` comes at once, and then
        whenever the numbers of inputs change, but at most once a second. The event `settled` is the last one: close the
        connection then.

        If the connection broke off, connect again with the header `Last-Event-ID`, as browsers do by themselves: the
        first event then comes with the next change. A stream ends after ten minutes; connect again.
        """
        nonlocal streams
        check_text(submission_id=submission_id)
        if streams >= _MOST:
            raise BusyError(f"{_MOST} streams of events are open; retry later")
        first = await latest.get(submission_id)

        async def counted() -> AsyncIterator[bytes]:
            nonlocal streams
            streams += 1
            try:
                async for part in _events(latest, first, last_event_id, stopping):
                    yield part
            finally:
                streams -= 1

        return StreamingResponse(
            counted(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )


async def _events(
    latest: _Latest, progress: dict[str, Any], seen: str | None, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    began = sent = time.monotonic()
    yield b"retry: %d\n\n" % _RETRY
    while True:
        settled, identity = progress["settled"] >= progress["expected"], event_id(progress)
        if settled or identity != seen:
            yield event("settled" if settled else "progress", identity, progress)
            seen, sent = identity, time.monotonic()
        elif time.monotonic() - sent > _KEEP_ALIVE:
            yield b": still here\n\n"
            sent = time.monotonic()
        if settled or time.monotonic() - began > _LONGEST:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _EVERY)
        if stopping.is_set():
            return
        # While the database does not answer, nothing new is known. The stream continues when it answers again.
        with suppress(*POSTGRES_AWAY):
            progress = await latest.get(progress["submission_id"])


def event_id(progress: dict[str, Any]) -> str:
    """Return the id of an event: a hash of the numbers of inputs. The same numbers have the same id."""
    numbers = msgspec.json.encode({name: progress[name] for name in _WATCHED}, order="sorted")
    return hashlib.sha256(numbers).hexdigest()[:16]


def event(kind: str, identity: str, progress: dict[str, Any]) -> bytes:
    """Return an event as text. JSON has no line breaks, so that one line of data suffices."""
    retry = f"retry: {_RETRY_SETTLED}\n" if kind == "settled" else ""
    data = msgspec.json.encode(progress).decode()
    return f"event: {kind}\nid: {identity}\n{retry}data: {data}\n\n".encode()
