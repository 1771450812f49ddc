"""Compute Kafka keys: all records about one chunk have the same key, so they share one partition per topic. Pure.

One worker reads each partition, in order. So the events about a chunk's attempts are applied in the order in which they
were written. So are the runs that name the chunk in their metadata.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec
from aiokafka.partitioner import murmur2

from everyrun.extend import reserved

#: Separates the id of a chunk from what was made of it: ``sub_X.c00001-2`` is its second part, after it was cut, and
#: ``sub_X.c00001-r3`` the chunk for those of its inputs that the third retry of the submission sends again.
PART = "-"
_RETRY = re.compile(r"-r([1-9][0-9]{0,3})(?:-|$)")

_KEY = f'"{reserved.KEY}"'.encode()


class _Metadata(msgspec.Struct):
    reserved: reserved.Reserved | None = msgspec.field(default=None, name=reserved.KEY)


_decode = msgspec.json.Decoder(_Metadata).decode


def lineage(chunk: str) -> str:
    """Return the original chunk of a part or of a retry. Return an original chunk unchanged."""
    return chunk.partition(PART)[0]


def retry_chunk(original: str, retry: int) -> str:
    """Return the id of the chunk for the inputs of an original chunk that a retry of the submission sends again."""
    return f"{original}{PART}r{retry}"


@lru_cache(maxsize=1 << 14)
def retry_of(chunk: str) -> int:
    """Return the number of the retry that made the chunk, or the chunk that it is a part of; 0 for a first try."""
    found = _RETRY.search(chunk)
    return int(found[1]) if found else 0


def run_key(metadata: bytes | msgspec.Raw, batch_id: str | None, run_id: str) -> str:
    """Return the key of an observation of a run.

    If the metadata contains the reserved key, the result is the lineage of the chunk that the reserved key names, even
    if another installation wrote it. Otherwise, the result is the batchId, or the run id if there is no batchId.
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
    # Cached: the hash is pure Python, and all runs of a chunk have the same key.
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner chooses for a key: its murmur2 hash, modulo."""
    return _hash(key) % partitions
