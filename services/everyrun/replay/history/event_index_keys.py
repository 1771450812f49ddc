"""Which events speak of which inputs, runs and batches, as numbers for an index. Pure.

An id is the first 8 bytes of its BLAKE2b hash: two ids may share a number, so what is found is read and looked at.
A place is topic, partition and offset in one number.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from everyrun.extend import reserved
from everyrun.log.cloudevents import header

#: The topics whose events make the tables, in the order of their numbers; never change it.
TOPICS = ("batches", "runs", "deliveries", "quarantine")
_OFFSET_BITS, _PARTITION_BITS = 46, 14


class Place(NamedTuple):
    """Where a record lies; ``topic`` is the short name."""

    topic: str
    partition: int
    offset: int

    def number(self) -> int:
        """The place as a number."""
        topic = TOPICS.index(self.topic)
        return (topic << (_PARTITION_BITS + _OFFSET_BITS)) | (self.partition << _OFFSET_BITS) | self.offset

    @classmethod
    def of(cls, number: int) -> Place:
        """The place that a number means."""
        offset = number & ((1 << _OFFSET_BITS) - 1)
        partition = (number >> _OFFSET_BITS) & ((1 << _PARTITION_BITS) - 1)
        return cls(TOPICS[number >> (_OFFSET_BITS + _PARTITION_BITS)], partition, offset)


class Said(NamedTuple):
    """What an event speaks of: ids that few events speak of, and the batch whose run it observed."""

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
    """The number of an id, as Postgres keeps a bigint."""
    digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def said_by(topic: str, record: Any) -> Said:
    """What an event speaks of; nothing, where it is not understood.

    An input of a chunk is spoken of by the events that bring it; the others of the chunk are found by the chunk.
    A submission is spoken of by the events that are about no chunk of it.
    """
    try:
        if topic == "runs":
            return _of_run(record)
        head = _head.decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said(set(), None)
    ids = {head.chunk, head.batch_id, head.run_id}
    ids |= {head.submission_id} if head.chunk is None else set()
    ids |= {*head.input_ids, *(given.input_id for given in head.inputs)}
    if topic == "deliveries":
        key = reserved.read(head.metadata)
        ids |= {key.input} if key else set()
    return Said({identifier for identifier in ids if identifier}, None)


def _of_run(record: Any) -> Said:
    value = record.value or b""
    run_id, batch = header(record.headers, "ce_subject"), (record.key or b"").decode("utf-8", "replace")
    if run_id and _KEY not in value:
        return Said({run_id}, batch if batch != run_id else None)
    run = _observed.decode(value).run
    key = reserved.read(run.metadata)
    return Said({run.id, key.input} if key else {run.id}, run.batchId)
