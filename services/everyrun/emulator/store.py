"""Keep the emulator's state in SQLite. A separate thread commits the writes, many of them in one commit."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from everyrun.emulator.runs import Run

_SCHEMA = """
create table if not exists things (kind text, id text, body text, primary key (kind, id));
create table if not exists batches (id text primary key, workflow_id text, version text, priority int, accepted_at real,
    runs int, answered int);
create table if not exists runs (number integer primary key, id text, batch_id text, workflow_id text, version text,
    file blob, metadata blob, created_at real, listed_at real, kept text);
create table if not exists deliveries (event_id text, endpoint_id text, extra int, number int, generation int, step int,
    attempt int, due real, primary key (event_id, endpoint_id, extra)) without rowid;
"""
_RUN = "insert or replace into runs values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_KEPT = "update runs set kept = ? where number = ?"

Write = tuple[str, tuple[Any, ...]]


def run_write(run: Run) -> Write:
    """Return the write that stores a whole run."""
    head = (run.number, run.id, run.batch_id, run.workflow_id, run.version, run.file, run.metadata)
    return _RUN, (*head, run.created_at, run.listed_at, msgspec.json.encode(run.kept()).decode())


class Store:
    """Keeps the state across restarts, even after kill -9.

    Writes that a caller hands over without an ``await`` between them are committed together or not at all. Writes that
    nobody waits for (``enqueue``, ``changed``) are committed within a quarter of a second, and no later than the next
    ``commit``.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "emulator.sqlite", check_same_thread=False)
        self._db.executescript("pragma journal_mode=wal; pragma synchronous=normal;" + _SCHEMA)
        self._thread = ThreadPoolExecutor(1)
        self._writes: list[Write] = []
        self._changed: dict[int, Run] = {}
        self._next_commit: asyncio.Future[None] | None = None
        self._committing = asyncio.Lock()
        #: Called at every commit. It returns the writes for counters that changed.
        self.counters: Callable[[], list[Write]] = list

    def enqueue(self, *writes: Write) -> None:
        """Commit these writes soon."""
        self._writes.extend(writes)

    def changed(self, run: Run) -> None:
        """Commit the changes of a run soon, except its metadata."""
        self._changed[run.number] = run

    async def commit(self, *writes: Write) -> None:
        """Commit these writes and all earlier ones, and return when they are committed. Raises sqlite3.Error."""
        self._writes.extend(writes)
        if self._next_commit is None:
            self._next_commit = asyncio.ensure_future(self._flush())
        await asyncio.shield(self._next_commit)

    async def _flush(self) -> None:
        async with self._committing:
            # This commit does not contain writes that arrive from here on, so these must start another commit.
            self._next_commit = None
            writes, self._writes = self._writes, []
            changed, self._changed = self._changed, {}
            for run in changed.values():
                writes.append((_KEPT, (msgspec.json.encode(run.kept()).decode(), run.number)))
            writes += self.counters()
            if writes:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._write, writes)

    def _write(self, writes: list[Write]) -> None:
        with self._db:
            for sql, same_sql in groupby(writes, key=lambda write: write[0]):
                self._db.executemany(sql, [parameters for _, parameters in same_sql])

    async def commit_regularly(self) -> None:
        """Commit waiting writes every 0.2 s, forever."""
        while True:
            await asyncio.sleep(0.2)
            await self.commit()

    def put(self, kind: str, identifier: str, body: Any) -> Write:
        """Return the write that stores a small document (an endpoint, a file, a counter) as JSON."""
        text = msgspec.json.encode(body).decode()
        return "insert into things values (?, ?, ?) on conflict do update set body = excluded.body", (
            kind,
            identifier,
            text,
        )

    def drop(self, kind: str, identifier: str) -> Write:
        """Return the write that deletes a small document."""
        return "delete from things where kind = ? and id = ?", (kind, identifier)

    def documents(self, kind: str) -> dict[str, Any]:
        """Return the documents of a kind by id, first stored first.

        Call this only before the first write. From then on, only the writing thread may use the connection.
        """
        rows = self._db.execute("select id, body from things where kind = ? order by rowid", (kind,))
        return {identifier: msgspec.json.decode(body) for identifier, body in rows}

    def runs(self) -> list[Run]:
        """Return all runs in the order of their numbers. Like ``documents``, call this only before the first write."""
        found = []
        for row in self._db.execute("select * from runs order by number"):
            number, identifier, batch_id, workflow_id, version, file, metadata, created_at, listed_at, kept = row
            head = (number, identifier, batch_id, workflow_id, version, file, metadata, created_at)
            found.append(Run(*head, listed_at=listed_at, **msgspec.json.decode(kept)))
        return found

    def deliveries(self) -> list[tuple[Any, ...]]:
        """Return the rows of ``deliveries``. Like ``documents``, call this only before the first write."""
        return list(self._db.execute("select * from deliveries order by due"))

    async def batches(self) -> list[tuple[Any, ...]]:
        """Commit waiting writes, and return (id, runs, accepted_at, answered) of every batch, first accepted first."""
        await self.commit()
        sql = "select id, runs, accepted_at, answered from batches order by accepted_at, rowid"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: list(self._db.execute(sql)))

    async def close(self) -> None:
        """Commit waiting writes and close the database."""
        await self.commit()
        self._thread.shutdown()
        self._db.close()
