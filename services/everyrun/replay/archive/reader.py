"""Read records from an archive. Each file is compared with its manifest before any of its records is returned."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NamedTuple

from everyrun.log.reading import OffsetRange, Partition, RecordRange, read_ranges
from everyrun.log.topics import cluster_id
from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive.manifest import Manifest
from everyrun.replay.archive.object_store import ObjectStore
from everyrun.replay.errors import ArchiveError, NoArchiveError
from everyrun.settings import Settings


class ManifestChain(NamedTuple):
    """All manifests of an archive in order, and the hash of the newest manifest; None if there is no manifest."""

    manifests: list[Manifest]
    hash: str | None


async def read_chain(store: ObjectStore) -> ManifestChain:
    """Read the manifests of an archive.

    Raises ArchiveError if a manifest cannot be read, or if it does not continue the chain of those before it.
    """
    found: list[Manifest] = []
    previous: str | None = None
    for path in await store.paths(manifests.MANIFESTS):
        stored = await store.get(path)
        try:
            manifest = manifests.from_bytes(stored)
        except manifests.ManifestFormatError as error:
            raise ArchiveError(f"{path} is not a manifest: {error}") from None
        if manifest.number != len(found) + 1 or manifest.previous != previous:
            raise ArchiveError(
                f"the chain of manifests is broken at {path}; see: everyrun archive verify --from {store.location}"
            )
        found.append(manifest)
        previous = manifests.hash_of(stored)
    return ManifestChain(found, previous)


class ArchiveReader:
    """Reads the records of an archive."""

    def __init__(self, store: ObjectStore, chain: list[Manifest]) -> None:
        self._store = store
        self.manifests = chain

    @classmethod
    async def open(cls, location: str) -> ArchiveReader:
        """Open an archive and read its manifests.

        Raises NoArchiveError if there are no manifests, and ArchiveError if their chain is broken.
        """
        store = ObjectStore(location)
        chain = await read_chain(store)
        if not chain.manifests:
            raise NoArchiveError(f"there is no archive in {location}")
        return cls(store, chain.manifests)

    @property
    def cluster_id(self) -> str:
        """The id of the Kafka cluster that was archived."""
        return self.manifests[0].cluster_id

    def bounds(self, topics: Iterable[str]) -> dict[Partition, OffsetRange]:
        """Return the archived range of offsets of each partition of the given topics."""
        wanted = set(topics)
        found: dict[Partition, OffsetRange] = {}
        for manifest in self.manifests:
            for covered in manifest.partitions if manifest.topic in wanted else ():
                partition = (manifest.topic, covered.partition)
                found[partition] = (found[partition][0] if partition in found else covered.first, covered.end)
        return found

    async def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """Yield the archived records within the ranges, in order within each partition.

        Raises ArchiveError if a file is missing or differs from its manifest. No record of such a file is yielded.
        """
        for manifest in self.manifests:
            wanted = {
                covered.partition: ranges[manifest.topic, covered.partition]
                for covered in manifest.partitions
                if _overlap(ranges.get((manifest.topic, covered.partition)), covered)
            }
            if wanted:
                async for record_range in self._file(manifest, wanted):
                    yield record_range

    async def _file(self, manifest: Manifest, wanted: Mapping[int, OffsetRange]) -> AsyncIterator[RecordRange]:
        from everyrun.replay.archive import parquet

        with tempfile.TemporaryFile(prefix="everyrun-archive-") as file:
            try:
                sha256 = await self._store.fetch(manifest.file, file)
            except FileNotFoundError:
                raise ArchiveError(f"{manifest.file} is missing; see: everyrun archive verify") from None
            if sha256 != manifest.sha256:
                raise ArchiveError(f"{manifest.file} was changed; see: everyrun archive verify")
            for batch in parquet.read_records(manifest.topic, file):
                by_partition: dict[int, list[parquet.ArchivedRecord]] = {}
                for record in batch:
                    range_ = wanted.get(record.partition)
                    if range_ is not None and range_[0] <= record.offset < range_[1]:
                        by_partition.setdefault(record.partition, []).append(record)
                for partition, records in by_partition.items():
                    yield RecordRange(manifest.topic, partition, records, records[-1].offset + 1)
        for covered in manifest.partitions:
            if covered.partition in wanted:
                # The file may cover offsets after its last record, for example if the topic was compacted. Yield an
                # empty range up to the end, so that the reader continues after these offsets.
                end = min(covered.end, wanted[covered.partition][1])
                yield RecordRange(manifest.topic, covered.partition, [], end)


class ArchiveAndLog:
    """Reads records from an archive, and from the log in Kafka those that the archive does not have.

    If the archive of a partition begins after the first wanted offset, the whole partition is read from Kafka.
    """

    def __init__(self, reader: ArchiveReader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings

    @classmethod
    async def open(cls, location: str, settings: Settings) -> ArchiveAndLog:
        """Open an archive and read its manifests.

        Raises what :meth:`ArchiveReader.open` raises. Also raises ArchiveError if the archive is of another Kafka
        cluster than the one in the settings.
        """
        reader = await ArchiveReader.open(location)
        cluster = await cluster_id(settings)
        if reader.cluster_id != cluster:
            raise ArchiveError(f"{location} is the archive of Kafka cluster {reader.cluster_id}, not of {cluster}")
        return cls(reader, settings)

    async def read(self, ranges: Mapping[Partition, OffsetRange]) -> AsyncIterator[RecordRange]:
        """Yield the records within the ranges, in order within each partition."""
        archived = self._reader.bounds({topic for topic, _ in ranges})
        from_archive, from_log = {}, {}
        for partition, (first, end) in ranges.items():
            archived_first, archived_end = archived.get(partition, (first, first))
            middle = min(max(first, archived_end), end) if archived_first <= first else first
            from_archive[partition], from_log[partition] = (first, middle), (middle, end)
        async for record_range in self._reader.read(from_archive):
            yield record_range
        async for record_range in read_ranges(self._settings, from_log):
            yield record_range


def _overlap(range_: OffsetRange | None, covered: manifests.Covered) -> bool:
    return range_ is not None and range_[0] < covered.end and covered.first < range_[1]
