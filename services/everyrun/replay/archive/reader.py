"""Reading an archive: its records in order, each file checked against its manifest before anything of it is given."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping

from everyrun.log.reading import OffsetRange, Partition, RecordRange, read_ranges
from everyrun.log.topics import cluster_id
from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive import parquet
from everyrun.replay.archive.manifest import Manifest
from everyrun.replay.archive.object_store import Objects
from everyrun.replay.archive.writer import ArchiveError, NoArchiveError, read_manifests
from everyrun.settings import Settings


class ArchiveReader:
    """The records of an archive whose chain of manifests is whole."""

    def __init__(self, objects: Objects, chain: list[Manifest]) -> None:
        self._objects = objects
        self.manifests = chain

    @classmethod
    async def open(cls, place: str) -> ArchiveReader:
        """Read the manifests. Raises ArchiveError where there are none, or where the chain is broken."""
        objects = Objects(place)
        newest = await read_manifests(objects)
        if not newest.manifests:
            raise NoArchiveError(f"there is no archive in {place}")
        return cls(objects, newest.manifests)

    @property
    def cluster_id(self) -> str:
        """The Kafka cluster that was archived."""
        return self.manifests[0].cluster_id

    def bounds(self, topics: Iterable[str]) -> dict[Partition, OffsetRange]:
        """The offsets that are archived, from the first up to, without, the second, of each partition."""
        wanted = set(topics)
        found: dict[Partition, OffsetRange] = {}
        for manifest in self.manifests:
            for covered in manifest.partitions if manifest.topic in wanted else ():
                place = (manifest.topic, covered.partition)
                found[place] = (found[place][0] if place in found else covered.first, covered.end)
        return found

    async def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """The archived records within the ranges; each partition in order.

        Raises ArchiveError where a file is not what its manifest says, before a record of it is given.
        """
        for manifest in self.manifests:
            wanted = {
                covered.partition: ranges[manifest.topic, covered.partition]
                for covered in manifest.partitions
                if _meet(ranges.get((manifest.topic, covered.partition)), covered)
            }
            if wanted:
                async for stretch in self._file(manifest, wanted):
                    yield stretch

    async def _file(self, manifest: Manifest, wanted: Mapping[int, OffsetRange]) -> AsyncIterator[RecordRange]:
        with tempfile.TemporaryFile(prefix="everyrun-archive-") as file:
            try:
                sha256 = await self._objects.fetch(manifest.file, file)
            except FileNotFoundError:
                raise ArchiveError(f"{manifest.file} is missing; see: everyrun archive verify") from None
            if sha256 != manifest.sha256:
                raise ArchiveError(f"{manifest.file} was changed; see: everyrun archive verify")
            for batch in parquet.read_records(manifest.topic, file):
                parts: dict[int, list[parquet.Archived]] = {}
                for record in batch:
                    between = wanted.get(record.partition)
                    if between is not None and between[0] <= record.offset < between[1]:
                        parts.setdefault(record.partition, []).append(record)
                for partition, records in parts.items():
                    yield RecordRange(manifest.topic, partition, records, records[-1].offset + 1)
        for covered in manifest.partitions:
            if covered.partition in wanted:
                # Behind the last record a compacted topic may have offsets without one.
                end = min(covered.end, wanted[covered.partition][1])
                yield RecordRange(manifest.topic, covered.partition, [], end)


class ArchiveAndLog:
    """An archive, and behind its end the live log that it is of: a source as the log alone is one."""

    def __init__(self, reader: ArchiveReader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings

    @classmethod
    async def open(cls, place: str, settings: Settings) -> ArchiveAndLog:
        """Read the manifests. Raises ArchiveError as ArchiveReader does, and where it is of another log."""
        reader = await ArchiveReader.open(place)
        cluster = await cluster_id(settings)
        if reader.cluster_id != cluster:
            raise ArchiveError(f"{place} is the archive of Kafka cluster {reader.cluster_id}, not of {cluster}")
        return cls(reader, settings)

    async def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """The records within the ranges; each partition in order, from the archive as far as it reaches."""
        archived = self._reader.bounds({topic for topic, _ in ranges})
        old, rest = {}, {}
        for place, (first, end) in ranges.items():
            begin, reached = archived.get(place, (first, first))
            middle = min(max(first, reached), end) if begin <= first else first
            old[place], rest[place] = (first, middle), (middle, end)
        async for stretch in self._reader.read(old):
            yield stretch
        async for stretch in read_ranges(self._settings, rest):
            yield stretch


def _meet(between: OffsetRange | None, covered: manifests.Covered) -> bool:
    return between is not None and between[0] < covered.end and covered.first < between[1]
