"""Check that an archive holds every record of the log, without the code that wrote the archive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from aiokafka import AIOKafkaConsumer

from everyrun.log import topics
from everyrun.log.reading import partitions
from everyrun.settings import Settings


class RecordPosition(NamedTuple):
    """The position of a record in the log; ``topic`` is the short name."""

    topic: str
    partition: int
    offset: int


#: A digest of each record.
Digests = dict[RecordPosition, bytes]


def _digest(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]], timestamp: int) -> bytes:
    return hashlib.sha256(repr((key, value, list(headers), timestamp)).encode()).digest()


async def of_log(settings: Settings) -> Digests:
    """Read every record of the topics without a retention limit. Raises KafkaError."""
    names = [topic.name for topic in topics.declared() if topic.config["retention.ms"] == "-1"]
    parts = await partitions(settings, names)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(parts))
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(list(parts))
        found: Digests = {}
        while any([await consumer.position(part) < end for part, end in ends.items()]):
            for part, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    position = RecordPosition(*parts[part], record.offset)
                    found[position] = _digest(record.key, record.value, record.headers, record.timestamp)
        return found
    finally:
        await consumer.stop()


def of_archive(folder: Path) -> Digests:
    """Read every record of every file that a manifest names."""
    found: Digests = {}
    for manifest in sorted(folder.glob("manifests/*.json")):
        named = json.loads(manifest.read_bytes())
        for row in pq.ParquetFile(folder / named["file"]).read().to_pylist():
            headers = [(header["name"], header["value"]) for header in row["headers"]]
            milliseconds = round(row["timestamp"].timestamp() * 1000)
            position = RecordPosition(named["topic"], row["partition"], row["offset"])
            found[position] = _digest(row["key"], row["value"], headers, milliseconds)
    return found


def missing(log: Digests, archive: Digests) -> list[str]:
    """Return which records of the log the archive lacks or holds with other content. Pure.

    The archive may hold more: records that compaction has removed from their topic since.
    """
    if not log:
        return ["the log has no records: nothing was compared"]
    wrong = sorted(position for position, digest in log.items() if archive.get(position) != digest)
    if not wrong:
        return []
    topic, partition, offset = wrong[0]
    return [
        f"the archive lacks {len(wrong)} of {len(log)} records of the log, for example {topic}/{partition}@{offset}"
    ]
