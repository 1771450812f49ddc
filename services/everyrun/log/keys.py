"""The Kafka keys of the inputs of the tables: everything about one chunk has one key, so it lies in one partition.

The key decides the partition, and a partition is read in one order. So the events of a chunk's attempts, and the runs
that name the chunk in their metadata, are applied in the order in which they were written, by one worker. Pure.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
from aiokafka.partitioner import murmur2

from everyrun.extend import reserved

#: Separates a chunk from the number of a part that it was cut into: ``sub_X.c00001-2`` is the second of those.
PART = "-"

_KEY = f'"{reserved.KEY}"'.encode()


class _Metadata(msgspec.Struct):
    reserved: reserved.Reserved | None = msgspec.field(default=None, name=reserved.KEY)


_decode = msgspec.json.Decoder(_Metadata).decode


def lineage(chunk: str) -> str:
    """Return the chunk that a part was cut from first; a chunk that is no part is its own."""
    return chunk.partition(PART)[0]


def run_key(metadata: bytes | msgspec.Raw, batch_id: str | None, run_id: str) -> str:
    """Return the key of an observation of a run.

    That is the lineage of the chunk that the reserved metadata key names, whichever installation wrote it; without
    one the batchId; without either the run id.
    """
    text = bytes(metadata)
    if _KEY in text:
        try:
            named = _decode(text).reserved
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            named = None
        if named is not None and (chunk := lineage(named.chunk)):
            return chunk
    return batch_id or run_id


@lru_cache(maxsize=1 << 14)
def _hash(key: bytes) -> int:
    # The hash is pure Python, and the runs of a chunk have one key.
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka chooses for a key (murmur2 of it), as aiokafka's partitioner does."""
    return _hash(key) % partitions
