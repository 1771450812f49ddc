"""The log itself, looked at while it is read: the sequence of offsets, ids used twice, events without the other side.

What is seen of each record is kept beside the rebuilt tables, so that memory stays flat, and an audit that was killed
goes on.
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
#: Tables of ours beside the rebuilt ones.
SEEN, GAPS = "audit_seen", "audit_gaps"
_COLUMNS = ("topic", "partition", "offset", "id", "content")
#: What may differ in a repeated event: it was said again after a crash, later, or by other evidence.
_VARYING = frozenset(
    {"submitted_at", "rejected_at", "registered_at", "deadline", "evidence", "reason", "by", "url", "headers"}
)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decode = msgspec.json.Decoder()


class Finding(msgspec.Struct, frozen=True):
    """Something wrong with the log: what, and where."""

    what: str
    where: str


def content(topic: str, value: bytes) -> int:
    """What an event says, without what may differ in a repetition of it, as a number."""
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


def identity(headers: Iterable[tuple[str, bytes]]) -> int | None:
    """The event's id as a number; None where there is none."""
    for name, value in headers:
        if name == "ce_id":
            return int.from_bytes(hashlib.blake2b(value or b"", digest_size=8).digest(), "big", signed=True)
    return None


async def prepare(connection: asyncpg.Connection) -> None:
    """Have the tables for what is seen."""
    await connection.execute(_sql["make"])


def observer(pool: asyncpg.Pool, start: Offsets) -> Callable[[RecordRange], Awaitable[None]]:
    """What an engine that begins at ``start`` is to tell of what it reads."""
    expected: dict[Partition, int] = dict(start)

    async def observe(stretch: RecordRange) -> None:
        position = (stretch.topic, stretch.partition)
        gaps = []
        at = expected.get(position, 0)
        for record in stretch.records:
            if record.offset != at:
                gaps.append((*position, at, record.offset))
            at = record.offset + 1
        if at < stretch.next_offset:
            gaps.append((*position, at, stretch.next_offset))
        expected[position] = stretch.next_offset
        rows = [
            (*position, record.offset, identity(record.headers), content(stretch.topic, record.value or b""))
            for record in stretch.records
        ]
        async with pool.acquire() as connection:
            if rows:
                await connection.copy_records_to_table(SEEN, records=rows, columns=_COLUMNS)
            if gaps:
                await connection.executemany(_sql["gap"], gaps)

    return observe


async def findings(
    settings: Settings, connection: asyncpg.Connection, offsets: Offsets, ends: Mapping[Partition, int]
) -> list[Finding]:
    """What is wrong with the log up to the offsets; ``ends`` is where it ends now."""
    found = [
        Finding(f"offsets {row['start']} to {row['next'] - 1} are missing", f"{row['topic']}:{row['partition']}")
        for row in await connection.fetch(_sql["gaps"])
    ]
    for row in await connection.fetch(_sql["reused"]):
        found.append(Finding("one event id with different contents", ", ".join(row["places"])))
    lonely = {(row["what"], row["name"]): row["said"] for row in await connection.fetch(_sql["lonely"])}
    if lonely:
        # The other side lies in another partition, and may be in the log without being applied.
        later = await _said_later(settings, offsets, ends)
        found += [Finding(said, name) for (what, name), said in lonely.items() if (what, name) not in later]
    return found


async def _said_later(settings: Settings, offsets: Offsets, ends: Mapping[Partition, int]) -> set[tuple[str, str]]:
    """What the log has behind the offsets, as (event type, the attempt or submission it is of)."""
    ranges = {position: (offsets.get(position, 0), end) for position, end in ends.items() if position[0] == "batches"}
    said = set()
    async for stretch in read_ranges(settings, ranges):
        for record in stretch.records:
            try:
                event: Any = _decode.decode(record.value or b"")
                name = f"{event['chunk']}/{event['attempt']}" if "chunk" in event else event["submission_id"]
                said.add((event["type"], name))
            except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                continue
    return said
