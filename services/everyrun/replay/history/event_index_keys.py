"""Compute the keys of the event index: the ids that an event mentions, and its location, as numbers. Pure.

The number of an id is its BLAKE2b hash of 8 bytes. Two ids may have the same number, so code that uses the index must
check that a found event really mentions the id. The number of a location contains topic, partition and offset.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from everyrun.extend import reserved
from everyrun.log.cloudevents import header
from everyrun.log.reading import LogRecord
from everyrun.projection.offsets import INPUTS

_OFFSET_BITS, _PARTITION_BITS = 46, 14


class EventLocation(NamedTuple):
    """The location of an event in the log; ``topic`` is the short name."""

    topic: str
    partition: int
    offset: int

    def number(self) -> int:
        """Return the location as a number."""
        topic = INPUTS.index(self.topic)
        return (topic << (_PARTITION_BITS + _OFFSET_BITS)) | (self.partition << _OFFSET_BITS) | self.offset

    @classmethod
    def of(cls, number: int) -> EventLocation:
        """Return the location that a number stands for."""
        offset = number & ((1 << _OFFSET_BITS) - 1)
        partition = (number >> _OFFSET_BITS) & ((1 << _PARTITION_BITS) - 1)
        return cls(INPUTS[number >> (_OFFSET_BITS + _PARTITION_BITS)], partition, offset)


class EventSubjects(NamedTuple):
    """The ids that an event mentions.

    ``ids`` are ids that only few events mention. If the event observes a run, ``batch`` is the batch of this run. It is
    kept apart from ``ids``, because many events observe runs of one batch.
    """

    ids: set[str]
    batch: str | None


class _Head(msgspec.Struct):
    submission_id: str | None = None
    chunk: str | None = None
    batch_id: str | None = None
    run_id: str | None = None
    input_ids: list[str] = []
    inputs: list[_Input] = []
    metadata: Any = None


class _Input(msgspec.Struct):
    input_id: str


class _Run(msgspec.Struct):
    id: str
    batchId: str | None = None  # noqa: N815
    metadata: Any = None


class _Observed(msgspec.Struct):
    run: _Run


_head = msgspec.json.Decoder(_Head)
_observed = msgspec.json.Decoder(_Observed)
_KEY = f'"{reserved.KEY}"'.encode()


def number_of(identifier: str) -> int:
    """Return the number of an id, in the range of a Postgres bigint."""
    digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def subjects_of(topic: str, record: LogRecord) -> EventSubjects:
    """Return the ids by which the index finds an event; no ids if the event cannot be decoded.

    To keep the index small, ids are left out if the event can be found by another id:

    - an input's id is returned only for events that list the input. A search finds the other events of the input's
      chunk by the chunk's id;
    - a submission's id is returned only for events that concern no chunk.
    """
    try:
        if topic == "runs":
            return _of_run(record)
        head = _head.decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return EventSubjects(set(), None)
    ids = {head.chunk, head.batch_id, head.run_id}
    ids |= {head.submission_id} if head.chunk is None else set()
    ids |= {*head.input_ids, *(given.input_id for given in head.inputs)}
    if topic == "deliveries":
        key = reserved.read(head.metadata)
        ids |= {key.input} if key else set()
    return EventSubjects({identifier for identifier in ids if identifier}, None)


def _of_run(record: LogRecord) -> EventSubjects:
    value = record.value or b""
    run_id, batch = header(record.headers, "ce_subject"), (record.key or b"").decode("utf-8", "replace")
    if run_id and _KEY not in value:
        return EventSubjects({run_id}, batch if batch != run_id else None)
    run = _observed.decode(value).run
    key = reserved.read(run.metadata)
    return EventSubjects({run.id, key.input} if key else {run.id}, run.batchId)
