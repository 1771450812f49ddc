"""Writing the archive: goes on from its newest manifest; may be killed at any moment, and is then run again."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from everyrun.errors import EveryrunError, NotFound
from everyrun.log import topics as log_topics
from everyrun.log.reading import OffsetRange, Partition, RecordRange, bounds, read_ranges
from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive import parquet
from everyrun.replay.archive.manifest import Content, Covered, Manifest, digest
from everyrun.replay.archive.object_store import Objects, TakenError
from everyrun.replay.archive.signing import sign
from everyrun.settings import Settings

#: A file is ended at this many records or bytes of values, so that a killed run has little to do again.
FILE_RECORDS = 250_000
FILE_BYTES = 256 << 20
#: A row group holds this much; what is kept in memory is a few of them.
GROUP_RECORDS = 20_000
GROUP_BYTES = 16 << 20
#: Days that are written to at the same time.
OPEN_DAYS = 4

Progress = Callable[[int, int], None]
"""Told how many records are archived and how many there are."""


class ArchiveError(EveryrunError):
    """The archive cannot be written to or read; the text says why."""


class NoArchiveError(ArchiveError, NotFound):
    """There is no archive where one was looked for."""


class Newest(NamedTuple):
    """Where an archive stands: all of its manifests, and the hash of the newest."""

    manifests: list[Manifest]
    hash: str | None


class Archived(NamedTuple):
    """What a run did: how many records into how many files, and the archive's newest manifest."""

    records: int
    files: int
    number: int
    hash: str | None


async def read_manifests(objects: Objects) -> Newest:
    """The archive's manifests, each checked against the next. Raises ArchiveError where the chain is broken."""
    found: list[Manifest] = []
    previous: str | None = None
    for path in await objects.paths(manifests.MANIFESTS):
        stored = await objects.get(path)
        try:
            manifest = manifests.from_bytes(stored)
        except manifests.NotAManifestError as error:
            raise ArchiveError(f"{path} is no manifest: {error}") from None
        if manifest.number != len(found) + 1 or manifest.previous != previous:
            raise ArchiveError(f"the chain is broken at {path}; see: everyrun archive verify --from {objects.place}")
        found.append(manifest)
        previous = manifests.hash_of(stored)
    return Newest(found, previous)


def kept_topics() -> list[str]:
    """The topics that are kept for ever, and so can be archived."""
    return [topic.name for topic in log_topics.declared() if topic.config["retention.ms"] == "-1"]


_DAY = 86_400_000


def day_of(timestamp: int) -> str:
    """The UTC day of a Kafka timestamp in milliseconds."""
    return datetime.fromtimestamp(timestamp // _DAY * 86_400, UTC).strftime("%Y-%m-%d")


def by_days(records: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """The records, in their order, apart where one is of another day than the one before it."""
    return [(day_of(day * _DAY), list(part)) for day, part in groupby(records, lambda record: record.timestamp // _DAY)]


def to_archive(
    first: Mapping[Partition, int], end: Mapping[Partition, int], done: Mapping[Partition, int]
) -> dict[Partition, OffsetRange]:
    """What of each partition is not archived yet. Raises ArchiveError where log and archive do not fit together."""
    ranges = {}
    for (topic, partition), log_end in sorted(end.items()):
        start = done.get((topic, partition), first[topic, partition])
        if start > log_end:
            raise ArchiveError(f"{topic}/{partition} is archived up to {start} and ends at {log_end}: another log")
        if start < first[topic, partition]:
            raise ArchiveError(
                f"{topic}/{partition} is archived up to {start} and begins at {first[topic, partition]}: "
                "records between were deleted before they were archived. Begin another archive."
            )
        ranges[topic, partition] = (start, log_end)
    return ranges


async def archive(
    settings: Settings,
    place: str,
    *,
    topics: Sequence[str] = (),
    sign_key: Ed25519PrivateKey | None = None,
    progress: Progress = lambda done, total: None,
) -> Archived:
    """Bring the archive at ``place`` up to where the log ends now; all topics unless some are named.

    A file counts from the moment its manifest is there; what a killed run left without one is removed by the next.
    Raises ArchiveError, aiokafka.errors.KafkaError, or what :mod:`everyrun.replay.archive.object_store` raises.
    """
    objects = Objects(place, create=True)
    newest = await read_manifests(objects)
    cluster = await log_topics.cluster_id(settings)
    if newest.manifests and newest.manifests[0].cluster_id != cluster:
        raise ArchiveError(
            f"{place} is the archive of Kafka cluster {newest.manifests[0].cluster_id}, not of {cluster}"
        )
    names = list(topics) or kept_topics()
    limits = await bounds(settings, names)
    ranges = to_archive(limits.first, limits.end, manifests.ends(newest.manifests))
    writer = _Writer(objects, newest, cluster, await _leftovers(objects, newest.manifests))
    total, done = sum(end - first for first, end in ranges.values()), 0
    with tempfile.TemporaryDirectory(prefix="everyrun-archive-") as folder:
        for topic in names:
            files = _TopicFiles(writer, topic, Path(folder))
            wanted = {position: between for position, between in ranges.items() if position[0] == topic}
            at = {partition: first for (_, partition), (first, _) in wanted.items()}
            async for stretch in read_ranges(settings, wanted):
                await files.take(stretch, at[stretch.partition])
                done += stretch.next_offset - at[stretch.partition]
                at[stretch.partition] = stretch.next_offset
                progress(done, total)
            await files.finish()
    if sign_key is not None and writer.hash is not None:
        made = sign(sign_key, writer.archive, writer.number, writer.hash)
        await objects.put(manifests.signature_path(writer.number), msgspec.json.encode(made) + b"\n")
    return Archived(writer.records, writer.number - len(newest.manifests), writer.number, writer.hash)


async def _leftovers(objects: Objects, known: Sequence[Manifest]) -> set[str]:
    """The files of runs that were killed before their manifest was there; those of the newest number are removed.

    A run that took the number may have been killed before it removed them.
    """
    found = [path for folder in (manifests.RECORDS, manifests.DIGESTS) for path in await objects.paths(folder)]
    named = {path for manifest in known[-1:] for path in (manifest.file, manifest.digests)}
    unnamed = {path: manifests.number_in(path) or 0 for path in found if path not in named}
    await objects.delete(sorted(path for path, number in unnamed.items() if known and number == len(known)))
    return {path for path, number in unnamed.items() if number > len(known)}


class _Writer:
    """Adds files to the chain."""

    def __init__(self, objects: Objects, newest: Newest, cluster_id: str, leftovers: set[str]) -> None:
        self._objects = objects
        self._cluster_id = cluster_id
        self._leftovers = leftovers
        self.archive = newest.manifests[0].archive if newest.manifests else str(uuid.uuid4())
        self.number = len(newest.manifests)
        self.hash = newest.hash
        self.records = 0

    async def add(self, built: _File) -> None:
        """Store the file and its digests, then its manifest: from then on it is part of the archive."""
        number = self.number + 1
        sha256, digests_sha256 = built.hashes()
        manifest = Manifest(
            archive=self.archive,
            number=number,
            previous=self.hash,
            cluster_id=self._cluster_id,
            topic=built.topic,
            day=built.day,
            file=manifests.record_path(built.topic, built.day, number, sha256),
            bytes=built.path.stat().st_size,
            sha256=sha256,
            digests=manifests.digest_path(number, digests_sha256),
            digests_sha256=digests_sha256,
            count=built.content.count,
            content=built.content.hexdigest(),
            partitions=[built.covered[partition] for partition in sorted(built.covered)],
        )
        await self._objects.put(manifest.file, built.path)
        await self._objects.put(manifest.digests, built.digests_path)
        stored = manifests.to_bytes(manifest)
        try:
            await self._objects.create(manifests.manifest_path(number), stored)
        except TakenError:
            taken = manifests.from_bytes(await self._objects.get(manifests.manifest_path(number)))
            await self._objects.delete(sorted({manifest.file, manifest.digests} - {taken.file, taken.digests}))
            raise ArchiveError(f"another run is writing to {self._objects.place}: manifest {number} is there") from None
        self.number, self.hash = number, manifests.hash_of(stored)
        self.records += manifest.count
        built.remove()
        await self._remove_leftovers({manifest.file, manifest.digests})

    async def _remove_leftovers(self, own: set[str]) -> None:
        """Now that the number is taken, no other file of this number can become part of the archive."""
        self._leftovers -= own
        old = {path for path in self._leftovers if (manifests.number_in(path) or 0) <= self.number}
        await self._objects.delete(sorted(old))
        self._leftovers -= old


class _File:
    """A file that is being built on disk: records of one topic and day."""

    def __init__(self, topic: str, day: str, folder: Path) -> None:
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
        """Take records of a partition, which are all there is from ``first`` to ``end``."""
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
        """Whether it is to be ended."""
        return self.content.count >= FILE_RECORDS or self.bytes >= FILE_BYTES

    async def _write_group(self) -> None:
        group, self._group, self._group_bytes = self._group, [], 0
        if self._writing is not None:
            await self._writing
        digests = [digest(record) for record in group]
        self.content.add(digests)
        tables = [parquet.records_table(group), parquet.digests_table(group, digests)]
        # Compressing and writing leave the interpreter free for the next records.
        self._writing = asyncio.create_task(asyncio.to_thread(self._write, tables))

    def _write(self, tables: list[Any]) -> None:
        for writer, table in zip(self._writers, tables, strict=True):
            writer.write_table(table, row_group_size=table.num_rows)

    async def end(self) -> None:
        """Write what is left, and close."""
        if self._group:
            await self._write_group()
        if self._writing is not None:
            await self._writing
        for writer, file in zip(self._writers, self._files, strict=True):
            writer.close()
            file.close()

    def hashes(self) -> tuple[str, str]:
        """The SHA-256 of both files."""
        found = []
        for path in (self.path, self.digests_path):
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        return found[0], found[1]

    def remove(self) -> None:
        """Take both away from the disk."""
        self.path.unlink()
        self.digests_path.unlink()


class _TopicFiles:
    """The open files of one topic, by day. They are ended oldest day first, so that each partition has no hole."""

    def __init__(self, writer: _Writer, topic: str, folder: Path) -> None:
        self._writer, self._topic, self._folder = writer, topic, folder
        self._open: dict[str, _File] = {}
        self._day: dict[int, str] = {}

    async def take(self, stretch: RecordRange, first: int) -> None:
        """Take what lies between ``first`` and the stretch's next offset."""
        partition = stretch.partition
        parts = by_days(stretch.records)
        if not parts:
            # Offsets without records, at the end of a compacted topic: they belong to the day before them.
            day = self._day.get(partition) or min(self._open, default="")
            parts = [(day, [])] if day else []
        for index, (day, records) in enumerate(parts):
            end = parts[index + 1][1][0].offset if index + 1 < len(parts) else stretch.next_offset
            if day < self._day.get(partition, day):
                # The broker's clock was set back: what is open would come before what is older.
                await self.finish()
            self._day[partition] = day
            if day not in self._open:
                if len(self._open) >= OPEN_DAYS:
                    await self._end(min(self._open))
                self._open[day] = _File(self._topic, day, self._folder)
            file = self._open[day]
            await file.add(partition, records, first, end)
            first = end
            if file.full:
                for older in sorted(name for name in self._open if name <= day):
                    await self._end(older)

    async def _end(self, day: str) -> None:
        file = self._open.pop(day)
        await file.end()
        await self._writer.add(file)

    async def finish(self) -> None:
        """End every open file."""
        for day in sorted(self._open):
            await self._end(day)
