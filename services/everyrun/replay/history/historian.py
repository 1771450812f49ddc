"""Build the history of an id: find its events, say what each one changed, and compare the result with the live row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import NotFound
from everyrun.log import topics as log_topics
from everyrun.log.cloudevents import header, timestamp
from everyrun.log.reading import LogRecord, RecordReader
from everyrun.projection.offsets import INPUTS
from everyrun.replay.audit.row_diff import Difference
from everyrun.replay.export.targets import MARK
from everyrun.replay.history.changes import Change, InputProjection, run_changes
from everyrun.replay.history.event_index import EventIndex
from everyrun.replay.history.event_index_keys import EventLocation
from everyrun.replay.history.event_search import FoundEvents, open_search
from everyrun.replay.history.live_rows import JSON_COLUMNS, LiveRows, json_value
from everyrun.replay.progress import OnProgress, no_progress
from everyrun.settings import Settings
from everyrun.waiting import Waiting, waiting_of

_OF_SUBMISSION = ("submission-accepted", "submission-paused", "submission-resumed", "cancellation-requested")


class NoHistoryError(NotFound):
    """No event mentions the id. ``did_you_mean`` lists the full ids that the user may have meant."""

    def __init__(self, identifier: str, did_you_mean: Sequence[str] = ()) -> None:
        text = f"no event mentions {identifier}, and the queue does not have it"
        if did_you_mean:
            text += f"; did you mean {' or '.join(did_you_mean)}?"
        super().__init__(text)
        self.did_you_mean = list(did_you_mean)

    def details(self) -> dict[str, Any]:
        """Return the full ids that the user may have meant."""
        return {"did_you_mean": self.did_you_mean}


class HistoryEvent(msgspec.Struct, frozen=True):
    """An event of a history.

    ``appended_at`` is when the event was appended to the log, by the broker's clock. ``time`` is the event's own time,
    by the clock of the service that wrote it. If the event is a replay of another event, ``replayed`` is the position
    of that event in the log. ``what`` says what the event changed, and ``status`` is the status after the event.
    """

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
    """The history of an id.

    - ``kind`` is input, run or batch. The id of a chunk or a submission has the kind batch.
    - ``row`` is the input's row in the live tables.
    - ``agrees`` is true if the row in the live tables equals the row that the events make. It is false if a value
      differs, or if only one of these two rows exists. It is null if neither exists, or if the live tables have not
      applied all of the events yet. ``differences`` lists the values that differ. If a whole row is missing, it lists
      only one difference, whose ``column`` is ``*``.
    - If an input has no row yet, ``waiting`` says what it is waiting for, and ``status`` is its status in the queue.
    """

    id: str
    kind: str
    status: str | None
    version: str | None
    run_id: str | None
    row: dict[str, Any] | None
    agrees: bool | None
    events: list[HistoryEvent]
    differences: list[Difference] = []
    waiting: Waiting | None = None


class Historian:
    """Builds histories of one installation."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, index: EventIndex, records: RecordReader) -> None:
        self._settings = settings
        self._live = LiveRows(pool)
        self.index = index
        self._records = records
        #: Only one history is made at a time, because each keeps in memory the part of the log that is not indexed.
        self._turn = asyncio.Lock()

    async def history(self, identifier: str, on_progress: OnProgress = no_progress) -> History:
        """Return the history of an input, a run or a batch.

        Raises NoHistoryError, IndexBehindError, aiokafka.errors.KafkaError, asyncpg.PostgresError.
        """
        async with self._turn:
            return await self._history(identifier, on_progress)

    async def _history(self, identifier: str, on_progress: OnProgress) -> History:
        # Read the row before the log, so that the log has every event that made the row.
        row, applied = await self._live.row(identifier)
        search = await open_search(self._settings, self.index, self._records, on_progress)
        found = await search.find({identifier}, {identifier})
        queued = await self._live.queued(identifier) if row is None else None
        if not found and queued is None:
            raise NoHistoryError(identifier, await self._live.similar_ids(identifier))
        kind = _kind(identifier, found)
        if kind == "run":
            return _without_row(identifier, kind, await search.of_run(found))
        if kind == "batch":
            return _without_row(identifier, kind, await search.of_batch(identifier, found))
        found = await search.of_input(identifier, found)
        if queued is not None:
            # The input was not sent yet: only events of its submission concern it.
            of_submission = await search.find({queued["submission_id"]}, set())
            found |= {location: event for location, event in of_submission.items() if event.type in _OF_SUBMISSION}
        projection = InputProjection(identifier)
        events = [
            _history_event(location, record, projection.apply(location.topic, record))
            for location, record in _in_order(found)
        ]
        # The row can be compared only if the tables have applied all events that were found. If they have, a row that
        # the events make must also be in the tables; if it is not there, that is a difference.
        comparable = (row is not None or projection.row is not None) and all(
            location.offset < applied.get((location.topic, location.partition), 0) for location in found
        )
        differences = await self._live.differences(identifier, row, projection) if comparable else []
        waiting = None if queued is None else waiting_of(queued)
        return History(
            identifier,
            kind,
            projection.status if waiting is None else waiting.status,
            projection.version,
            projection.run_id,
            None if row is None else {name: _plain(name, row[name]) for name in row if name != "run"},
            not differences if comparable else None,
            events,
            differences,
            waiting,
        )


def _without_row(identifier: str, kind: str, found: FoundEvents) -> History:
    """Return the history of a run or a batch. It has no row, because ``results`` contains only rows of inputs."""
    ordered = _in_order(found)
    changes = run_changes([(location.topic, record) for location, record in ordered])
    status = changes[-1].status or None if kind == "run" and changes else None
    events = [
        _history_event(location, record, change) for (location, record), change in zip(ordered, changes, strict=True)
    ]
    return History(identifier, kind, status, None, None, None, None, events)


def _in_order(found: FoundEvents) -> list[tuple[EventLocation, Any]]:
    """Sort events by the broker's time, then by topic and location."""
    ordered = sorted(found.items(), key=lambda item: (item[1].record.timestamp, INPUTS.index(item[0].topic), item[0]))
    return [(location, event.record) for location, event in ordered]


def _kind(identifier: str, found: FoundEvents) -> str:
    """Return the kind of an id: input, run or batch. Ids of chunks and submissions count as batches."""
    if any(event.subjects.batch == identifier or event.field("batch_id") == identifier for event in found.values()):
        return "batch"
    for location, event in found.items():
        if location.topic == "runs" and header(event.record.headers, "ce_subject") == identifier:
            return "run"
        if location.topic == "deliveries" and event.field("run_id") == identifier:
            return "run"
        if identifier in (event.field("chunk"), event.field("submission_id")):
            return "batch"
    return "input"


def _plain(column: str, value: Any) -> Any:
    if column in JSON_COLUMNS:
        return json_value(value)
    return timestamp(value) if isinstance(value, datetime) else value


def _history_event(location: EventLocation, record: LogRecord, change: Change) -> HistoryEvent:
    return HistoryEvent(
        appended_at=timestamp(record.timestamp / 1000),
        time=header(record.headers, "ce_time"),
        type=header(record.headers, "ce_type"),
        source=header(record.headers, "ce_source"),
        topic=location.topic,
        partition=location.partition,
        offset=location.offset,
        replayed=header(record.headers, f"ce_{MARK}") or None,
        what=change.what,
        status=change.status,
    )


@asynccontextmanager
async def historian(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[Historian]:
    """Keep a historian open while the block runs. Raises aiokafka.errors.KafkaError if Kafka is unavailable."""
    index = EventIndex(pool, await log_topics.cluster_id(settings))
    async with RecordReader(settings, INPUTS) as records:
        yield Historian(settings, pool, index, records)
