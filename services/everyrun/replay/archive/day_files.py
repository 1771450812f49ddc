"""Build the Parquet files of an archive on disk: each holds records of one topic and one UTC day."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

from everyrun.log.reading import RecordRange
from everyrun.replay.archive.manifest import Content, Covered, digest

#: A file is closed once it has this many records or bytes of values. A kill loses only the files that were open.
FILE_RECORDS = 250_000
FILE_BYTES = 256 << 20
#: A row group is written once it has this many records or bytes of values. Memory holds a few row groups at a time.
GROUP_RECORDS = 20_000
GROUP_BYTES = 16 << 20
#: Maximum number of days whose files are open at the same time.
OPEN_DAYS = 4

#: Milliseconds of a day.
_DAY = 86_400_000


def day_of(timestamp: int) -> str:
    """Return the UTC day of a Kafka timestamp in milliseconds."""
    return datetime.fromtimestamp(timestamp // _DAY * 86_400, UTC).strftime("%Y-%m-%d")


def by_days(records: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Split records, without reordering them, into sequences that belong to one UTC day; return each with its day."""
    return [(day_of(day * _DAY), list(part)) for day, part in groupby(records, lambda record: record.timestamp // _DAY)]


class FileHashes(NamedTuple):
    """The SHA-256 of a file of records and of the file with its digests, in hexadecimal."""

    records: str
    digests: str


class DayFile:
    """Builds two files for one topic and day: a file of records, and a file with the digests of these records."""

    def __init__(self, topic: str, day: str, folder: Path) -> None:
        from everyrun.replay.archive import parquet

        self.topic, self.day = topic, day
        name = uuid.uuid4().hex
        self.path, self.digests_path = folder / f"{name}.parquet", folder / f"{name}.digests"
        self._files: list[IO[bytes]] = [self.path.open("wb"), self.digests_path.open("wb")]
        self._writers = [parquet.records_writer(self._files[0]), parquet.digests_writer(self._files[1])]
        self.content = Content(topic)
        self.covered: dict[int, Covered] = {}
        self.bytes = 0
        self._group: list[Any] = []
        self._group_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def add(self, partition: int, records: Sequence[Any], first: int, end: int) -> None:
        """Add records of a partition: all that it has from offset ``first`` up to, but not including, ``end``."""
        before = self.covered.get(partition)
        count = len(records) + (before.count if before else 0)
        self.covered[partition] = Covered(partition, before.first if before else first, end, count)
        self._group.extend(records)
        size = sum(len(record.value or b"") for record in records)
        self._group_bytes += size
        self.bytes += size
        if len(self._group) >= GROUP_RECORDS or self._group_bytes >= GROUP_BYTES:
            await self._write_group()

    @property
    def full(self) -> bool:
        """True if the file has reached its limit."""
        return self.content.count >= FILE_RECORDS or self.bytes >= FILE_BYTES

    async def _write_group(self) -> None:
        from everyrun.replay.archive import parquet

        group, self._group, self._group_bytes = self._group, [], 0
        if self._writing is not None:
            await self._writing
        digests = [digest(record) for record in group]
        self.content.add(digests)
        tables = [parquet.records_table(group), parquet.digests_table(group, digests)]
        # A thread compresses and writes the tables without holding Python's global lock, so that the next records can
        # be read meanwhile.
        self._writing = asyncio.create_task(asyncio.to_thread(self._write, tables))

    def _write(self, tables: list[Any]) -> None:
        for writer, table in zip(self._writers, tables, strict=True):
            writer.write_table(table, row_group_size=table.num_rows)

    async def close(self) -> None:
        """Write the remaining records, and close both files."""
        if self._group:
            await self._write_group()
        if self._writing is not None:
            await self._writing
        for writer, file in zip(self._writers, self._files, strict=True):
            writer.close()
            file.close()

    def hashes(self) -> FileHashes:
        """Return the hashes of both files. Call this after :meth:`close`."""
        found = []
        for path in (self.path, self.digests_path):
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        return FileHashes(*found)

    def remove(self) -> None:
        """Delete both files from the disk."""
        self.path.unlink()
        self.digests_path.unlink()


class TopicFiles:
    """The open files of one topic, by day.

    ``on_closed`` is called with each file after it was closed, and stores it with the next manifest. Manifests must
    cover the offsets of each partition in order and without a gap, so files are closed in the order of their days.
    """

    def __init__(self, topic: str, folder: Path, on_closed: Callable[[DayFile], Awaitable[None]]) -> None:
        self._topic, self._folder = topic, folder
        self._on_closed = on_closed
        self._open: dict[str, DayFile] = {}
        self._last_day: dict[int, str] = {}

    async def add(self, record_range: RecordRange, first: int) -> None:
        """Add the records of a range.

        The range covers the offsets from ``first`` up to, but not including, its next offset.
        """
        partition = record_range.partition
        parts = by_days(record_range.records)
        if not parts:
            # Some offsets of the range have no record, as may happen in a compacted topic. They count as part of the
            # last day.
            day = self._last_day.get(partition) or min(self._open, default="")
            parts = [(day, [])] if day else []
        for index, (day, records) in enumerate(parts):
            end = parts[index + 1][1][0].offset if index + 1 < len(parts) else record_range.next_offset
            if day < self._last_day.get(partition, day):
                # The broker's clock was set back: close the files of later days first.
                await self.close()
            self._last_day[partition] = day
            if day not in self._open:
                if len(self._open) >= OPEN_DAYS:
                    await self._close(min(self._open))
                self._open[day] = DayFile(self._topic, day, self._folder)
            file = self._open[day]
            await file.add(partition, records, first, end)
            first = end
            if file.full:
                for older in sorted(name for name in self._open if name <= day):
                    await self._close(older)

    async def _close(self, day: str) -> None:
        file = self._open.pop(day)
        await file.close()
        await self._on_closed(file)

    async def close(self) -> None:
        """Close every open file."""
        for day in sorted(self._open):
            await self._close(day)
