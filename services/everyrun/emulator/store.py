"""What the emulator must not forget, in SQLite: commits are made together, in a thread of their own."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
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
"""
_RUN = "insert or replace into runs values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

Write = tuple[str, tuple[Any, ...]]


def run_write(run: Run) -> Write:
    """Keeps a run whole."""
    head = (run.number, run.id, run.batch_id, run.workflow_id, run.version, run.file, run.metadata)
    return _RUN, (*head, run.created_at, run.listed_at, msgspec.json.encode(run.kept()).decode())


class Store:
    """Keeps things over a restart, kill -9 included. Writes that are not waited for may be lost with the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "emulator.sqlite", check_same_thread=False)
        self._db.executescript("pragma journal_mode=wal; pragma synchronous=normal;" + _SCHEMA)
        self._thread = ThreadPoolExecutor(1)
        self._writes: list[Write] = []
        self._flushing: asyncio.Future[None] | None = None

    def later(self, *writes: Write) -> None:
        """Keep these soon."""
        self._writes.extend(writes)

    async def now(self, *writes: Write) -> None:
        """Keep these, and all before; return when they are committed."""
        self._writes.extend(writes)
        while self._writes:
            if self._flushing is None:
                self._flushing = asyncio.ensure_future(self._flush())
            await asyncio.shield(self._flushing)

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        writes, self._writes = self._writes, []
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, writes)
        finally:
            self._flushing = None

    def _write(self, writes: list[Write]) -> None:
        with self._db:
            for sql, parameters in writes:
                self._db.execute(sql, parameters)

    async def keep_on(self) -> None:
        """Write what waits, every now and then, for ever."""
        while True:
            await asyncio.sleep(0.2)
            await self.now()

    def put(self, kind: str, identifier: str, body: Any) -> Write:
        """Keeps a small thing (an endpoint, a file, a counter) as JSON."""
        return "insert or replace into things values (?, ?, ?)", (kind, identifier, msgspec.json.encode(body).decode())

    def drop(self, kind: str, identifier: str) -> Write:
        """Forgets a small thing."""
        return "delete from things where kind = ? and id = ?", (kind, identifier)

    def things(self, kind: str) -> dict[str, Any]:
        """All small things of a kind, in the order they were first kept."""
        rows = self._db.execute("select id, body from things where kind = ? order by rowid", (kind,))
        return {identifier: msgspec.json.decode(body) for identifier, body in rows}

    def runs(self) -> list[Run]:
        """Every run, by number."""
        found = []
        for row in self._db.execute("select * from runs order by number"):
            number, identifier, batch_id, workflow_id, version, file, metadata, created_at, listed_at, kept = row
            head = (number, identifier, batch_id, workflow_id, version, file, metadata, created_at)
            found.append(Run(*head, listed_at=listed_at, **msgspec.json.decode(kept)))
        return found

    def batches(self) -> list[tuple[Any, ...]]:
        """(id, runs, accepted_at, answered) of every batch, in order."""
        return list(self._db.execute("select id, runs, accepted_at, answered from batches order by accepted_at, rowid"))

    async def close(self) -> None:
        """Write what waits."""
        await self.now()
        self._thread.shutdown()
        self._db.close()
