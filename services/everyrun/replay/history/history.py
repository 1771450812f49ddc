"""``history``: every event that touched an input, a run or a batch, in order, and what each changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import asyncpg
import msgspec
from fastapi import FastAPI
from msgspec import UNSET, Meta, UnsetType

from everyrun.errors import NotFound, Unavailable
from everyrun.http import scope
from everyrun.log import topics as log_topics
from everyrun.log.cloudevents import header, timestamp
from everyrun.log.reading import Partition, RecordReader, read_ranges
from everyrun.openapi import Problem, answers
from everyrun.replay.audit.row_diff import Difference, rows_differ
from everyrun.replay.history.changes import Change, InputStory, run_changes
from everyrun.replay.history.event_index_keys import TOPICS, Place, Said, said_by
from everyrun.replay.history.index import Index
from everyrun.settings import Settings
from everyrun.store.sql import beside
from everyrun.waiting import Waiting, waiting_of

_sql = beside(__file__, "index.sql")


#: What one question may hold in memory of a log that is not indexed yet: so many records, and bytes of their values.
TAIL_RECORDS, TAIL_BYTES = 20_000, 64 << 20


class IndexBehindError(Unavailable):
    """Too much of the log is not indexed to answer from the log itself: so many of ``total`` records are indexed."""

    code = "INDEX_BEHIND"

    def __init__(self, indexed: int, total: int) -> None:
        super().__init__(
            f"the index of the log has reached {indexed} of {total} records, and the rest is too much to read for one "
            "question; the replay service indexes it. Ask again later"
        )
        self.indexed = indexed
        self.total = total
        #: A rough guess, from 5 up to 300 seconds.
        self.retry_after = max(5, min(300, (total - indexed) // 20_000))

    def details(self) -> dict[str, Any]:
        """Return how far the index is, and how long the log."""
        return {"indexed": self.indexed, "total": self.total}


class NoHistoryError(NotFound):
    """No event speaks of that id; the text says so, and names the ids that a short one may stand for."""

    def __init__(self, identifier: str, near: Sequence[str] = ()) -> None:
        text = f"no event speaks of {identifier}, and the queue does not have it"
        if near:
            text += f"; did you mean {' or '.join(near)}?"
        super().__init__(text)
        self.near = list(near)

    def details(self) -> dict[str, Any]:
        """Return the ids that may have been meant."""
        return {"did_you_mean": self.near}


class Told(msgspec.Struct, frozen=True):
    """An event: when it was appended, what it is, where it lies, and what it changed. ``status`` is that after it."""

    appended_at: str
    time: str
    type: str
    source: str
    topic: str
    partition: int
    offset: int
    replayed: str | None
    what: str
    status: str


class History(msgspec.Struct, frozen=True):
    """All that is known of an id. ``kind`` is input, run or batch; ``row`` is the input's row in the live tables.

    ``agrees`` is whether the row, in all of its columns, is what the events make it; null if there is no row to
    compare, or more events than the tables have applied. ``differences`` are the values that differ. ``waiting`` is
    what an input without a row waits for, by the queue; ``status`` then is the queue's too.
    """

    id: str
    kind: str
    status: str | None
    version: str | None
    run_id: str | None
    row: dict[str, Any] | None
    agrees: bool | None
    events: list[Told]
    differences: list[Difference] = []
    waiting: Waiting | None = None


class IndexBehind(Problem, frozen=True, kw_only=True):
    """Too much of the log is not indexed; or another reason why the service cannot answer."""

    indexed: Annotated[int | UnsetType, Meta(description="Records of the log that are indexed.")] = UNSET
    total: Annotated[int | UnsetType, Meta(description="Records of the log.")] = UNSET


class NoHistory(Problem, frozen=True, kw_only=True):
    """No event speaks of the id."""

    did_you_mean: Annotated[list[str], Meta(description="The ids that a short one may stand for.")]


class _Found(NamedTuple):
    record: Any
    said: Said


Found = dict[Place, _Found]


class Historian:
    """Answers for one installation: by the index, and where it does not reach yet, from the log itself."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, index: Index, records: RecordReader) -> None:
        self._settings = settings
        self._pool = pool
        self.index = index
        self._records = records
        #: One question at a time holds what is not indexed.
        self._one = asyncio.Lock()

    async def history(
        self, identifier: str, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> History:
        """The history of an input, a run or a batch by its id.

        Raises NoHistoryError, IndexBehindError, aiokafka.errors.KafkaError, asyncpg.PostgresError.
        """
        async with self._one:
            return await self._history(identifier, progress)

    async def _history(self, identifier: str, progress: Callable[[int, int], None]) -> History:
        # The row before the log: then there is nothing in it that is not read here.
        row, applied = await self._row(identifier)
        tail = await self._tail(progress)
        found = await self._find(tail, {identifier}, {identifier})
        queued = await self._queued(identifier) if row is None else None
        if not found and queued is None:
            raise await self._none(identifier)
        kind = _kind(identifier, found)
        if kind == "input":
            found = await self._of_input(identifier, found, tail)
            if queued is not None:
                # Nothing was sent of it: the events of its submission alone speak of it.
                accepted = await self._find(tail, {queued["submission_id"]}, set())
                found |= {place: one for place, one in accepted.items() if _type(one) in _OF_SUBMISSION}
        elif kind == "run":
            found = await self._of_run(found, tail)
        else:
            found |= await self._chunks(found, tail, {identifier})
        ordered = sorted(
            found.items(), key=lambda item: (item[1].record.timestamp, TOPICS.index(item[0].topic), item[0])
        )
        records = [(place.topic, one.record) for place, one in ordered]
        if kind != "input":
            changes = run_changes(records)
            status = changes[-1].status or None if kind == "run" and changes else None
            told = [_told(place, one.record, change) for (place, one), change in zip(ordered, changes, strict=True)]
            return History(identifier, kind, status, None, None, None, None, told)
        story = InputStory(identifier)
        told = [_told(place, one.record, story.take(place.topic, one.record)) for place, one in ordered]
        # An event that the tables have not taken in yet cannot show in the row.
        taken_in = all(place.offset < applied.get((place.topic, place.partition), 0) for place in found)
        differences = await self._differences(row, story) if row and taken_in else []
        agrees = not differences if row and taken_in else None
        shown = None if row is None else {name: _shown(name, row[name]) for name in row if name != "run"}
        waiting = None if queued is None else waiting_of(queued)
        status = story.status if waiting is None else waiting.status
        return History(identifier, kind, status, story.version, story.run_id, shown, agrees, told, differences, waiting)

    async def _differences(self, row: Mapping[str, Any], story: InputStory) -> list[Difference]:
        """Every value of the row that is not what the events make it."""
        made = story.row
        key = str(row["input_id"])
        if made is None:
            return list(rows_differ("results", key, row, None))
        texts = {name: made[name] and made[name].decode() for name in _JSON}
        files = [file.decode() for file in story.files]
        live, log = dict(row), dict(made)
        columns = [*_JSON, *["file"] * len(files)]
        given = [row[name] for name in columns]
        compared = await self._pool.fetch(_sql["compare_json"], columns, given, [*texts.values(), *files])
        same = {one["column"] for one in compared if one["same"]}
        normal = {one["column"]: one["log"] for one in compared[: len(_JSON)]}
        for name in _JSON:
            # Shown as Postgres writes them, or 1.0 and 1 would pass for a difference.
            live[name], log[name] = (None, None) if name in same else (_json(row[name]), _json(normal[name]))
        return list(rows_differ("results", key, live, log))

    async def _none(self, identifier: str) -> NoHistoryError:
        """Return the error for an id that nothing is known of."""
        if "\x00" in identifier or len(identifier) > _LONGEST:
            return NoHistoryError(identifier)
        try:
            found = await self._pool.fetch(_sql["near"], identifier, len(identifier) >= _SHORTEST)
        except _NO_QUEUE:
            return NoHistoryError(identifier)
        return NoHistoryError(identifier, [row["id"] for row in found])

    async def _queued(self, identifier: str) -> dict[str, Any] | None:
        """The input as the queue has it; None where it does not."""
        submission_id, colon, external_id = identifier.partition(":")
        if not colon or "\x00" in identifier:
            return None
        try:
            row = await self._pool.fetchrow(_sql["queued_input"], submission_id, external_id)
        except _NO_QUEUE:
            return None
        return None if row is None else dict(row)

    async def _tail(self, progress: Callable[[int, int], None]) -> Found:
        """What is not indexed yet, all of it: it is read anew each time, so the index is to be kept near the end.

        Raises IndexBehindError if that is too much to hold.
        """
        indexed, ends = await self.index.positions(), await self._records.ends()
        left = {place: (indexed.get(place, 0), end) for place, end in ends.items() if indexed.get(place, 0) < end}
        total, done, size = sum(end - first for first, end in left.values()), 0, 0
        behind = IndexBehindError(sum(ends.values()) - total, sum(ends.values()))
        if total > TAIL_RECORDS:
            raise behind
        found: Found = {}
        async for stretch in read_ranges(self._settings, left):
            for record in stretch.records:
                size += len(record.value or b"")
                if size > TAIL_BYTES:
                    raise behind
                place = Place(stretch.topic, stretch.partition, record.offset)
                found[place] = _Found(record, said_by(stretch.topic, record))
            done += len(stretch.records)
            progress(done, total)
        return found

    async def _find(self, tail: Found, ids: set[str], batches: set[str]) -> Found:
        """The events that speak of one of the ids, or observed a run of one of the batches."""
        places = await self.index.find(ids, batches)
        read = await self._records.read(places)
        found = {}
        for place in places:
            if (record := read.get(place)) is not None:
                found[place] = _Found(record, said_by(place.topic, record))
        # Two ids may share a number in the index, so each event is asked itself.
        return {place: one for place, one in (found | tail).items() if one.said.ids & ids or one.said.batch in batches}

    async def _of_input(self, input_id: str, found: Found, tail: Found) -> Found:
        found = dict(found) | await self._chunks(found, tail, set())
        batches = {_field(one, "batch_id") for place, one in found.items() if _type(one) == "batch-registered"}
        if batches:
            # Its runs do not say whose they are: all of the batch are looked at, and those of this input kept.
            found |= await self._of_registered(input_id, found, {b for b in batches if b}, tail)
        runs = [one.said.ids for place, one in found.items() if place.topic == "runs"]
        others = {identifier for ids in runs for identifier in ids} - {input_id}
        found |= await self._find(tail, others, set()) if others else {}
        submissions = {_field(one, "submission_id") for place, one in found.items() if place.topic == "batches"}
        accepted = await self._find(tail, {s for s in submissions if s}, set())
        return found | {place: one for place, one in accepted.items() if place.topic == "batches"}

    async def _of_registered(self, input_id: str, known: Found, batches: set[str], tail: Found) -> Found:
        every = await self._find(tail, set(), batches)
        by_run: dict[str, Found] = {}
        for place, one in every.items():
            for run_id in one.said.ids:
                by_run.setdefault(run_id, {})[place] = one
        kept: Found = {}
        for events in by_run.values():
            story = InputStory(input_id)
            together = known | events
            for place in sorted(together, key=lambda p: (together[p].record.timestamp, p)):
                story.take(place.topic, together[place].record)
            kept |= events if story.run_id else {}
        return kept

    async def _of_run(self, found: Found, tail: Found) -> Found:
        batches = {one.said.batch for one in found.values() if one.said.batch}
        brought = await self._find(tail, {b for b in batches if b}, set())
        return found | {place: one for place, one in brought.items() if place.topic == "batches"}

    async def _chunks(self, found: Found, tail: Found, batches: set[str]) -> Found:
        chunks = {_field(one, "chunk") for place, one in found.items() if place.topic == "batches"}
        return await self._find(tail, {c for c in chunks if c}, batches)

    async def _row(self, input_id: str) -> tuple[dict[str, Any] | None, dict[Partition, int]]:
        """The input's row, and how far the tables were when it was that."""
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                row = await connection.fetchrow(_sql["row_of_input"], input_id)
                offsets = await connection.fetch(_sql["applied"])
        except asyncpg.UndefinedTableError:
            return None, {}
        applied = {(r["topic"], r["partition"]): r["next_offset"] for r in offsets}
        return None if row is None else dict(row), applied


#: Columns of ``results`` that are jsonb.
_JSON = ("file", "metadata", "run")
_OF_SUBMISSION = ("submission-accepted", "submission-paused", "submission-resumed")
#: There is no queue here, or none that may be read.
#: Fewer characters begin too many ids; no id has more.
_SHORTEST, _LONGEST = 6, 600
_NO_QUEUE = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError)


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def _shown(column: str, value: Any) -> Any:
    if column in _JSON:
        return _json(value)
    return timestamp(value) if isinstance(value, datetime) else value


def _type(one: _Found) -> str:
    return header(one.record.headers, "ce_type")


def _field(one: _Found, name: str) -> str | None:
    try:
        value = msgspec.json.decode(one.record.value or b"", type=dict[str, Any]).get(name)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, str) else None


def _kind(identifier: str, found: Mapping[Place, _Found]) -> str:
    if any(one.said.batch == identifier or _field(one, "batch_id") == identifier for one in found.values()):
        return "batch"
    for place, one in found.items():
        if place.topic == "runs" and header(one.record.headers, "ce_subject") == identifier:
            return "run"
        if place.topic == "deliveries" and _field(one, "run_id") == identifier:
            return "run"
        if identifier in (_field(one, "chunk"), _field(one, "submission_id")):
            return "batch"
    return "input"


def _told(place: Place, record: Any, change: Change) -> Told:
    return Told(
        appended_at=timestamp(record.timestamp / 1000),
        time=header(record.headers, "ce_time"),
        type=header(record.headers, "ce_type"),
        source=header(record.headers, "ce_source"),
        topic=place.topic,
        partition=place.partition,
        offset=place.offset,
        replayed=header(record.headers, "ce_everyrunreplay") or None,
        what=change.what,
        status=change.status,
    )


@asynccontextmanager
async def historian(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[Historian]:
    """One that answers while the block runs. Raises aiokafka.errors.KafkaError where Kafka does not answer."""
    index = Index(pool, await log_topics.cluster_id(settings))
    async with RecordReader(settings, TOPICS) as records:
        yield Historian(settings, pool, index, records)


def history_routes(app: FastAPI, asked: Callable[[], Historian]) -> None:
    """Add the route to an API; ``asked`` gives the historian, once it is there."""

    @app.get("/v1/history/{identifier:path}", dependencies=[scope("read")])
    @answers(
        History,
        {
            404: ("NOT_FOUND: no event speaks of the id.", NoHistory),
            503: ("INDEX_BEHIND: too much of the log is not indexed yet. Or as of every call.", IndexBehind),
        },
    )
    async def history(identifier: str) -> dict[str, Any]:
        """Every event that touched an input, a run or a batch, in the order of the log, and what each changed."""
        answer: dict[str, Any] = msgspec.to_builtins(await asked().history(identifier))
        return answer
