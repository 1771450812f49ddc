"""An in-memory queue, log and Extend for the unit tests of the dispatch modules.

All of them write what they do into one journal, so that a test can assert the order.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from everyrun import objects
from everyrun.log.cloudevents import Record, header
from everyrun.settings import Settings
from everyrun.store.sql import name_of
from everyrun.submission.dispatch.dispatcher import Dispatcher
from everyrun.submission.dispatch.object_links import ObjectLinks
from everyrun.submission.dispatch.resolver import Resolver
from everyrun.submission.dispatch.transitions import Transitions
from tests.memory_log import MemoryLog

CHUNK, INSTALLATION = "sub_1.c00001", "inst_1"
ACCEPTED = httpx.Response(202, json={"batchId": "batch_1"})


class Row(dict[str, Any]):
    """A row that iterates over its values, like asyncpg's."""

    def __iter__(self) -> Any:
        return iter(self.values())


class FakeClock:
    """A clock that only a test advances."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class FakeQueue:
    """Chunks of one submission, and the statements of dispatch.sql; also serves as its own connection."""

    def __init__(self, journal: list[str], clock: FakeClock) -> None:
        self.journal, self.clock = journal, clock
        self.incarnation = "incarnation 1"
        self.chunks: dict[str, Row] = {}
        #: The files of inputs by position, where they are not links.
        self.files: dict[int, dict[str, Any]] = {}
        self.adopted: list[tuple[Any, ...]] = []
        self.paused: list[tuple[str, str]] = []
        #: What the result tables show: complete sweeps, evidence, a witness, and applied offsets.
        self.sweeps = 0
        self.evidence: list[dict[str, Any]] = []
        self.witness: str | None = None
        self.applied: dict[tuple[str, int], int] = {}

    def add(self, chunk: str = CHUNK, inputs: int = 2, **columns: Any) -> Row:
        row = Row(
            {
                "chunk": chunk,
                "submission_id": "sub_1",
                "workflow_id": "workflow_1",
                "workflow_version": None,
                "priority": 90,
                "first_position": 1,
                "last_position": inputs,
                "state": "waiting",
                "attempt": 0,
                "resends": 0,
                "batch_id": None,
                "reason": None,
                "files_lost": False,
                "cancellation": None,
                "whole": False,
                "owner": None,
                "announced": 0,
                "deadline": None,
                "wait": 0.0,
            }
        )
        row.update(columns)
        self.chunks[chunk] = row
        return row

    def state(self, chunk: str = CHUNK) -> tuple[str, int]:
        return self.chunks[chunk]["state"], self.chunks[chunk]["attempt"]

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[FakeQueue]:
        yield self

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        before = deepcopy(self.chunks)
        try:
            yield
        except BaseException:
            for chunk in set(self.chunks) - set(before):
                del self.chunks[chunk]
            for chunk, row in before.items():
                self.chunks[chunk].update(row)
            raise

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        return list(getattr(self, "_" + name_of(statement).split()[0])(*arguments))

    async def fetchrow(self, statement: str, *arguments: Any) -> Any:
        return next(iter(await self.fetch(statement, *arguments)), None)

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        row = await self.fetchrow(statement, *arguments)
        return None if row is None else next(iter(row))

    async def execute(self, statement: str, *arguments: Any) -> None:
        await self.fetch(statement, *arguments)

    def _something_waits(self, _max_open: int) -> list[Row]:
        return [Row(waits=any(row["state"] == "waiting" for row in self.chunks.values()))]

    def _claim(self, owner: str, ends_within: float, incarnation: str, _max_open: int) -> list[Row]:
        for row in self.chunks.values():
            if row["state"] == "waiting" and incarnation == self.incarnation:
                deadline = self.clock() + timedelta(seconds=ends_within)
                row.update(state="sending", attempt=row["attempt"] + 1, owner=owner, deadline=deadline, reason=None)
                self.journal.append("claim")
                return [Row(chunk=row["chunk"], deadline=deadline)]
        return []

    def _attempt(self, chunk: str) -> list[Row]:
        row = self.chunks.get(chunk)
        return (
            [] if row is None else [Row(row.items(), overdue=bool(row["deadline"] and row["deadline"] <= self.clock()))]
        )

    def _lock_chunk(self, chunk: str) -> list[Row]:
        return [Row(row.items(), incarnation=self.incarnation) for row in self._attempt(chunk)]

    def _still_claimed(self, chunk: str, attempt: int, owner: str, _deadline: datetime, incarnation: str) -> list[Row]:
        row = self.chunks[chunk]
        claim = (row["attempt"], row["state"], row["owner"], self.incarnation)
        return [Row(batch_id=row["batch_id"])] if claim == (attempt, "sending", owner, incarnation) else []

    def _chunk_inputs(self, _submission: str, first: int, last: int) -> list[Row]:
        return [
            Row(
                position=n,
                external_id=str(n),
                file=json.dumps(self.files.get(n, {"url": f"https://e.com/{n}?signed"})),
                metadata="{}",
            )
            for n in range(first, last + 1)
        ]

    def _store_state(
        self, chunk: str, state: str, resends: int, wait: float, reason: str, window: float, batch: str, claimed: bool
    ) -> list[Row]:
        row = self.chunks[chunk]
        deadline = row["deadline"] if state == "sending" else window and self.clock() + timedelta(seconds=window)
        owner = row["owner"] if claimed else None
        row.update(
            state=state, resends=resends, wait=wait, reason=reason, deadline=deadline, batch_id=batch, owner=owner
        )
        self.journal.append(f"store {state}")
        return []

    def _cancellation_of(self, cancellation: str) -> list[Row]:
        return [Row(cancellation_id=cancellation, requested_by="ann", reason="the wrong folder")]

    def _lock_cancelled(self, _submissions: Any, _chunks: Any) -> list[Row]:
        return []

    def _insert_parts(
        self, chunks: list[str], _submissions: Any, firsts: list[int], lasts: list[int], _retries: list[int]
    ) -> list[Row]:
        for chunk, first, last in zip(chunks, firsts, lasts, strict=True):
            self.add(chunk, first_position=first, last_position=last)
        return [Row(chunk=chunk) for chunk in chunks]

    def _unresolved(self) -> list[Row]:
        return [
            Row(chunk=row["chunk"], attempt=row["attempt"], state=row["state"], sweeps=self.sweeps)
            for row in self.chunks.values()
            if row["state"] in ("sending", "in_doubt") and row["deadline"] <= self.clock()
        ]

    def _unannounced_claims(self, call_time: float) -> list[Row]:
        return [
            Row(chunk=row["chunk"], attempt=row["attempt"])
            for row in self.chunks.values()
            if row["state"] == "sending"
            and row["announced"] < row["attempt"]
            and row["deadline"] - timedelta(seconds=call_time) <= self.clock()
        ]

    def _applied_up_to(self, _topics: Any) -> list[Row]:
        return [Row(topic=topic, partition=number, next_offset=end) for (topic, number), end in self.applied.items()]

    def _evidence(self, _installation: str) -> list[Any]:
        return [row for row in self.evidence if (row["chunk"], row["attempt"], row["batch_id"]) not in self.adopted]

    def _adopted(self, *proof: Any) -> list[Row]:
        self.adopted.append(proof)
        return []

    def _witness(self, _chunk: str, _installation: str) -> list[Row]:
        return [] if self.witness is None else [Row(run_id=self.witness)]

    def _is_paused(self, kind: str, name: str) -> list[Row]:
        return [Row(paused=True)] if (kind, name) in self.paused else []

    def _pause(self, kind: str, name: str, *_why: Any) -> list[Row]:
        self.paused.append((kind, name))
        return []


class JournalLog(MemoryLog):
    """A log in memory that runs ``during[kind]`` while it receives an event of that kind."""

    def __init__(self, journal: list[str]) -> None:
        super().__init__()
        self.journal = journal
        self.during: dict[str, Callable[[], None]] = {}

    async def append(self, records: Iterable[Record]) -> None:
        for record in records:
            kind = header(record.headers, "ce_type")
            self.during.get(kind, lambda: None)()
            await super().append([record])
            self.journal.append(f"log {kind}")


class FakeExtend:
    """Answers batch calls with ``answer``, a response or an error."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.answer: httpx.Response | httpx.HTTPError = ACCEPTED
        self.bodies: list[dict[str, Any]] = []
        self.pauses: list[float] = []

    async def wait_for_turn(self, _category: str) -> None:
        pass

    async def pause(self, _category: str, seconds: float) -> None:
        self.pauses.append(seconds)

    async def create_batch(self, body: bytes) -> httpx.Response:
        self.journal.append("call")
        self.bodies.append(json.loads(body))
        if isinstance(self.answer, httpx.HTTPError):
            raise self.answer
        return self.answer


class FakeBuckets:
    """Buckets in memory: the ETag of each object, or the error that reading it raises."""

    def __init__(self) -> None:
        self.objects: dict[str, str | Exception] = {}
        self.signed = 0

    def open(self, url: str) -> Any:
        """Return a bucket."""
        return FakeBucket(self, url)


class FakeBucket:
    """A bucket of FakeBuckets. Each link has a number of its own."""

    def __init__(self, buckets: FakeBuckets, url: str) -> None:
        self.buckets, self.url = buckets, url

    async def head(self, key: str) -> objects.Found:
        found = self.buckets.objects.get(f"{self.url}/{key}")
        if found is None:
            raise objects.ObjectGoneError(f"there is no object {self.url}/{key}")
        if isinstance(found, Exception):
            raise found
        return objects.Found(objects.Address(self.url, key), 1, found, datetime(2026, 3, 1, tzinfo=UTC))

    async def heads(self, keys: list[str]) -> list[Any]:
        found: list[Any] = []
        for key in keys:
            try:
                found.append(await self.head(key))
            except (objects.ObjectGoneError, objects.ObjectDeniedError) as error:
                found.append(error)
        return found

    async def sign(self, keys: list[str], lifetime: float) -> list[str]:
        self.buckets.signed += 1
        return [f"https://store.example/{key}?signature={self.buckets.signed}&for={lifetime:g}" for key in keys]


class FakeRecovery:
    """A queue that is always caught up; ``on_catch_up`` can change it as the log would."""

    def __init__(self, queue: FakeQueue) -> None:
        self.queue = queue
        self.on_catch_up: Callable[[], None] = lambda: None

    async def ensure_caught_up(self) -> str:
        return self.queue.incarnation

    async def catch_up(self) -> None:
        self.queue.journal.append("catch up")
        self.on_catch_up()

    def invalidate(self) -> None:
        pass


class Dispatch:
    """The dispatch modules, wired to fakes."""

    def __init__(self) -> None:
        self.settings = Settings(dispatch_deadline=30, call_timeout=300, doubt_window=900, doubt_resends=1)
        self.journal: list[str] = []
        self.clock = FakeClock()
        self.queue = FakeQueue(self.journal, self.clock)
        self.log = JournalLog(self.journal)
        self.extend = FakeExtend(self.journal)
        #: The end of each partition of the log, for the resolver.
        self.log_ends: dict[tuple[str, int], int] = {}
        self.recovery = FakeRecovery(self.queue)
        queue: Any = self.queue
        log: Any = self.log
        extend: Any = self.extend
        recovery: Any = self.recovery
        self.transitions = Transitions(self.settings, queue, log)
        self.buckets = FakeBuckets()
        links = ObjectLinks(3600, 15, self.buckets.open)
        self.dispatcher = Dispatcher(
            self.settings, queue, extend, log, INSTALLATION, recovery, self.transitions, links, self.clock
        )
        self.resolver = Resolver(self.settings, queue, recovery, self.transitions, INSTALLATION)

    def events(self) -> list[str]:
        return [header(record.headers, "ce_type") for record in self.log.records]
