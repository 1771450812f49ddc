"""Check the log itself for missing offsets, event ids that were used twice, and events without their counterpart.

While the audit reads the log, it writes a short note about each record to tables beside the rebuilt ones. So the check
needs little memory however long the log is, and an interrupted audit can resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import asyncpg
import msgspec

from everyrun.log.reading import Partition, RecordRange, read_ranges
from everyrun.replay.rebuild.engine import Offsets
from everyrun.settings import Settings
from everyrun.store.sql import beside

_sql = beside(__file__, "log_check.sql")
#: The tables of the check, in the same schema as the rebuilt tables.
SEEN, GAPS = "audit_seen", "audit_gaps"
_COLUMNS = ("topic", "partition", "offset", "id", "content")
#: If a service writes an event twice because of a crash, these fields may differ: the second event has a later time,
#: and may contain other evidence.
_VARYING = frozenset(
    {
        "submitted_at",
        "rejected_at",
        "cancelled_at",
        "registered_at",
        "deadline",
        "evidence",
        "reason",
        "by",
        "url",
        "headers",
    }
)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decode = msgspec.json.Decoder()


class LogDefect(msgspec.Struct, frozen=True):
    """A defect of the log: what is wrong, and where."""

    what: str
    where: str


def content_number(topic: str, value: bytes) -> int:
    """Return a hash of an event's content, without the fields that may differ if the event was written twice."""
    digest = hashlib.blake2b(digest_size=8)
    if topic == "runs":
        digest.update(value)
    else:
        try:
            fields = _fields.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            digest.update(value)
        else:
            for name in sorted(fields.keys() - _VARYING):
                digest.update(name.encode() + b"\0" + bytes(fields[name]) + b"\0")
    return int.from_bytes(digest.digest(), "big", signed=True)


def id_number(headers: Iterable[tuple[str, bytes]]) -> int | None:
    """Return a hash of the event's id; None if the record has no id."""
    for name, value in headers:
        if name == "ce_id":
            return int.from_bytes(hashlib.blake2b(value or b"", digest_size=8).digest(), "big", signed=True)
    return None


async def create_tables(connection: asyncpg.Connection) -> None:
    """Create the tables of the check, unless they exist."""
    await connection.execute(_sql["create_tables"])


def observer(pool: asyncpg.Pool, start: Offsets) -> Callable[[RecordRange], Awaitable[None]]:
    """Return a function that writes notes about each range of records that an engine reads from ``start`` on."""
    expected: dict[Partition, int] = dict(start)

    async def observe(record_range: RecordRange) -> None:
        partition = (record_range.topic, record_range.partition)
        gaps = []
        next_offset = expected.get(partition, 0)
        for record in record_range.records:
            if record.offset != next_offset:
                gaps.append((*partition, next_offset, record.offset))
            next_offset = record.offset + 1
        if next_offset < record_range.next_offset:
            gaps.append((*partition, next_offset, record_range.next_offset))
        expected[partition] = record_range.next_offset
        rows = [
            (
                *partition,
                record.offset,
                id_number(record.headers),
                content_number(record_range.topic, record.value or b""),
            )
            for record in record_range.records
        ]
        async with pool.acquire() as connection:
            if rows:
                await connection.copy_records_to_table(SEEN, records=rows, columns=_COLUMNS)
            if gaps:
                await connection.executemany(_sql["add_gap"], gaps)

    return observe


async def defects(
    settings: Settings, connection: asyncpg.Connection, offsets: Offsets, ends: Mapping[Partition, int]
) -> list[LogDefect]:
    """List the defects of the log up to the given offsets. ``ends`` are the present ends of the partitions."""
    found = [
        LogDefect(f"offsets {row['start']} to {row['next'] - 1} are missing", f"{row['topic']}:{row['partition']}")
        for row in await connection.fetch(_sql["gaps"])
    ]
    for row in await connection.fetch(_sql["reused_ids"]):
        found.append(LogDefect("one event id with different contents", ", ".join(row["records"])))
    rows = await connection.fetch(_sql["missing_counterparts"])
    missing = {(row["type"], row["subject"]): row["defect"] for row in rows}
    if missing:
        # The counterpart may be in another partition and after the given offsets, so look for it there too.
        later = await _events_after(settings, offsets, ends)
        found += [
            LogDefect(defect, subject) for (kind, subject), defect in missing.items() if (kind, subject) not in later
        ]
    return found


async def _events_after(settings: Settings, offsets: Offsets, ends: Mapping[Partition, int]) -> set[tuple[str, str]]:
    """Return a pair (event type, attempt or submission) for each event of ``batches`` after the given offsets."""
    ranges = {
        partition: (offsets.get(partition, 0), end) for partition, end in ends.items() if partition[0] == "batches"
    }
    found = set()
    async for record_range in read_ranges(settings, ranges):
        for record in record_range.records:
            try:
                event: Any = _decode.decode(record.value or b"")
                subject = f"{event['chunk']}/{event['attempt']}" if "chunk" in event else event["submission_id"]
                found.add((event["type"], subject))
            except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                continue
    return found
