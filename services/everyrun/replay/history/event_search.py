"""Find the events that concern an id, with the index and in the part of the log that is not indexed yet."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from everyrun.errors import Unavailable
from everyrun.log.cloudevents import header
from everyrun.log.reading import LogRecord, RecordReader, read_ranges
from everyrun.replay.history.changes import InputProjection
from everyrun.replay.history.event_index import EventIndex
from everyrun.replay.history.event_index_keys import EventLocation, EventSubjects, subjects_of
from everyrun.replay.progress import OnProgress
from everyrun.settings import Settings

#: Limits of the part of the log that a search reads because it is not indexed yet: the number of records, and the bytes
#: of their values.
TAIL_RECORDS, TAIL_BYTES = 20_000, 64 << 20


class IndexBehindError(Unavailable):
    """Too much of the log is not indexed yet: only ``indexed`` of its ``total`` records are in the index."""

    code = "INDEX_BEHIND"

    def __init__(self, indexed: int, total: int) -> None:
        super().__init__(
            f"the index has reached {indexed} of {total} records of the log, and the rest is too much to read for one "
            "question. The replay service is indexing it; try again later"
        )
        self.indexed = indexed
        self.total = total
        #: Estimated seconds until the rest is indexed, at 20,000 records per second; between 5 and 300.
        self.retry_after = max(5, min(300, (total - indexed) // 20_000))

    def details(self) -> dict[str, Any]:
        """Return the number of indexed records and of all records."""
        return {"indexed": self.indexed, "total": self.total}


class FoundEvent(NamedTuple):
    """An event of the log, and the ids that it mentions."""

    record: LogRecord
    subjects: EventSubjects

    @property
    def type(self) -> str:
        """The event's type."""
        return header(self.record.headers, "ce_type")

    def field(self, name: str) -> str | None:
        """Return a text field of the event's data; None if there is no text field of this name."""
        try:
            value = msgspec.json.decode(self.record.value or b"", type=dict[str, Any]).get(name)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return value if isinstance(value, str) else None


FoundEvents = dict[EventLocation, FoundEvent]


class EventSearch:
    """Finds the events for one history. :func:`open_search` makes it, and first reads what is not indexed yet."""

    def __init__(self, index: EventIndex, records: RecordReader, tail: FoundEvents) -> None:
        self._index = index
        self._records = records
        self._tail = tail

    async def find(self, ids: set[str], batches: set[str]) -> FoundEvents:
        """Return the events that mention one of the ids, or observe a run of one of the batches."""
        locations = await self._index.find(ids, batches)
        read = await self._records.read(locations)
        found = self._tail.copy()
        for location in locations:
            if (record := read.get(location)) is not None:
                found[location] = FoundEvent(record, subjects_of(location.topic, record))
        # Two ids may have the same number in the index, so check the ids in the events.
        return {
            location: event
            for location, event in found.items()
            if event.subjects.ids & ids or event.subjects.batch in batches
        }

    async def of_input(self, input_id: str, found: FoundEvents) -> FoundEvents:
        """Return ``found`` (events that mention an input) and the events of its chunks, runs and submission."""
        found = found | await self._of_chunks(found)
        batches = {event.field("batch_id") for event in found.values() if event.type == "batch-registered"}
        if batches:
            # Runs of a registered batch do not name their input. Look at all runs of the batch, and keep those that
            # match this input.
            found |= await self._of_registered(input_id, found, {batch for batch in batches if batch})
        runs = [event.subjects.ids for location, event in found.items() if location.topic == "runs"]
        others = {identifier for ids in runs for identifier in ids} - {input_id}
        found |= await self.find(others, set()) if others else {}
        return found | await self._of_submissions(found)

    async def of_run(self, found: FoundEvents) -> FoundEvents:
        """Return ``found`` (events that mention a run) and the events of its batch, but not those of other runs."""
        batches = {event.subjects.batch for event in found.values() if event.subjects.batch}
        of_batches = await self.find(batches, set())
        return found | _of_topic("batches", of_batches)

    async def of_batch(self, batch_id: str, found: FoundEvents) -> FoundEvents:
        """Return ``found`` (events that mention a batch) and the events of this batch's chunk and runs."""
        return found | await self._of_chunks(found, {batch_id})

    async def _of_chunks(self, found: FoundEvents, batches: set[str] | None = None) -> FoundEvents:
        chunks = {event.field("chunk") for event in _of_topic("batches", found).values()}
        return await self.find({chunk for chunk in chunks if chunk}, batches or set())

    async def _of_submissions(self, found: FoundEvents) -> FoundEvents:
        submissions = {event.field("submission_id") for event in _of_topic("batches", found).values()}
        return _of_topic("batches", await self.find({submission for submission in submissions if submission}, set()))

    async def _of_registered(self, input_id: str, known: FoundEvents, batches: set[str]) -> FoundEvents:
        by_run: dict[str, FoundEvents] = {}
        for location, event in (await self.find(set(), batches)).items():
            for run_id in event.subjects.ids:
                by_run.setdefault(run_id, {})[location] = event
        kept: FoundEvents = {}
        for of_run in by_run.values():
            projection = InputProjection(input_id)
            together = known | of_run
            for location in sorted(together, key=lambda one: (together[one].record.timestamp, one)):
                projection.apply(location.topic, together[location].record)
            kept |= of_run if projection.run_id else {}
        return kept


def _of_topic(topic: str, found: FoundEvents) -> FoundEvents:
    return {location: event for location, event in found.items() if location.topic == topic}


async def open_search(
    settings: Settings, index: EventIndex, records: RecordReader, on_progress: OnProgress
) -> EventSearch:
    """Read the part of the log that is not indexed yet; return a search over the index and this part.

    Raises IndexBehindError if the part exceeds TAIL_RECORDS or TAIL_BYTES.
    """
    indexed, ends = await index.next_offsets(), await records.ends()
    ranges = {
        partition: (indexed.get(partition, 0), end)
        for partition, end in ends.items()
        if indexed.get(partition, 0) < end
    }
    total, done, size = sum(end - first for first, end in ranges.values()), 0, 0
    behind = IndexBehindError(sum(ends.values()) - total, sum(ends.values()))
    if total > TAIL_RECORDS:
        raise behind
    tail: FoundEvents = {}
    async for record_range in read_ranges(settings, ranges):
        for record in record_range.records:
            size += len(record.value or b"")
            if size > TAIL_BYTES:
                raise behind
            location = EventLocation(record_range.topic, record_range.partition, record.offset)
            tail[location] = FoundEvent(record, subjects_of(record_range.topic, record))
        done += len(record_range.records)
        on_progress(done, total)
    return EventSearch(index, records, tail)
