"""What the emulator must not forget, in SQLite: commits are made together, in a thread of their own."""

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
    """Keeps a run whole."""
    head = (run.number, run.id, run.batch_id, run.workflow_id, run.version, run.file, run.metadata)
    return _RUN, (*head, run.created_at, run.listed_at, msgspec.json.encode(run.kept()).decode())


class Store:
    """Keeps things over a restart, kill -9 included.

    Everything handed over without a break in between (no ``await``) is kept together or not at all. Writes that are
    not waited for (``later``, ``changed``) are kept within a quarter of a second, and no later than the next ``now``.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "emulator.sqlite", check_same_thread=False)
        self._db.executescript("pragma journal_mode=wal; pragma synchronous=normal;" + _SCHEMA)
        self._thread = ThreadPoolExecutor(1)
        self._writes: list[Write] = []
        self._changed: dict[int, Run] = {}
        self._group: asyncio.Future[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        #: Asked at every commit for what else to keep.
        self.counters: Callable[[], list[Write]] = list

    def later(self, *writes: Write) -> None:
        """Keep these soon."""
        self._writes.extend(writes)

    def changed(self, run: Run) -> None:
        """Keep soon what changed of a run; its metadata is not among it."""
        self._changed[run.number] = run

    async def now(self, *writes: Write) -> None:
        """Keep these, and all before; return when they are committed. Raises sqlite3.Error."""
        self._writes.extend(writes)
        if self._group is None:
            self._group = asyncio.ensure_future(self._flush())
        await asyncio.shield(self._group)

    async def _flush(self) -> None:
        async with self._one_at_a_time:
            # Whoever comes from here on needs the next commit.
            self._group = None
            writes, self._writes = self._writes, []
            changed, self._changed = self._changed, {}
            for run in changed.values():
                writes.append((_KEPT, (msgspec.json.encode(run.kept()).decode(), run.number)))
            writes += self.counters()
            if writes:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._write, writes)

    def _write(self, writes: list[Write]) -> None:
        with self._db:
            for sql, together in groupby(writes, key=lambda write: write[0]):
                self._db.executemany(sql, [parameters for _, parameters in together])

    async def keep_on(self) -> None:
        """Write what waits, every now and then, for ever."""
        while True:
            await asyncio.sleep(0.2)
            await self.now()

    def put(self, kind: str, identifier: str, body: Any) -> Write:
        """Keeps a small thing (an endpoint, a file, a counter) as JSON."""
        text = msgspec.json.encode(body).decode()
        return "insert into things values (?, ?, ?) on conflict do update set body = excluded.body", (
            kind,
            identifier,
            text,
        )

    def drop(self, kind: str, identifier: str) -> Write:
        """Forgets a small thing."""
        return "delete from things where kind = ? and id = ?", (kind, identifier)

    def things(self, kind: str) -> dict[str, Any]:
        """All small things of a kind, in the order they were first kept. Only before anything is written."""
        rows = self._db.execute("select id, body from things where kind = ? order by rowid", (kind,))
        return {identifier: msgspec.json.decode(body) for identifier, body in rows}

    def runs(self) -> list[Run]:
        """Every run, by number. Only before anything is written."""
        found = []
        for row in self._db.execute("select * from runs order by number"):
            number, identifier, batch_id, workflow_id, version, file, metadata, created_at, listed_at, kept = row
            head = (number, identifier, batch_id, workflow_id, version, file, metadata, created_at)
            found.append(Run(*head, listed_at=listed_at, **msgspec.json.decode(kept)))
        return found

    def deliveries(self) -> list[tuple[Any, ...]]:
        """The rows of ``deliveries``. Only before anything is written."""
        return list(self._db.execute("select * from deliveries order by due"))

    async def batches(self) -> list[tuple[Any, ...]]:
        """(id, runs, accepted_at, answered) of every batch, in order, those not waited for included."""
        await self.now()
        sql = "select id, runs, accepted_at, answered from batches order by accepted_at, rowid"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: list(self._db.execute(sql)))

    async def close(self) -> None:
        """Write what waits."""
        await self.now()
        self._thread.shutdown()
        self._db.close()
