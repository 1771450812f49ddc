"""Archive the log: add what is not archived yet, as Parquet files with a chain of manifests.

The writer may be killed at any moment; the next one continues after the newest manifest.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from everyrun.log import topics as log_topics
from everyrun.log.reading import OffsetRange, Partition, bounds, read_ranges
from everyrun.replay.archive import manifest as manifests
from everyrun.replay.archive.day_files import DayFile, TopicFiles
from everyrun.replay.archive.manifest import Manifest
from everyrun.replay.archive.object_store import ObjectExistsError, ObjectStore
from everyrun.replay.archive.reader import ManifestChain, read_chain
from everyrun.replay.archive.signing import sign
from everyrun.replay.errors import ArchiveError
from everyrun.replay.progress import OnProgress, no_progress
from everyrun.settings import Settings


class ArchiveResult(NamedTuple):
    """The number of records and files that were added, and the number and hash of the newest manifest."""

    records: int
    files: int
    number: int
    hash: str | None


def archived_topics() -> list[str]:
    """Return the topics that can be archived: those whose records Kafka does not delete after a time."""
    return [topic.name for topic in log_topics.declared() if topic.config["retention.ms"] == "-1"]


def ranges_to_archive(
    first: Mapping[Partition, int], end: Mapping[Partition, int], archived: Mapping[Partition, int]
) -> dict[Partition, OffsetRange]:
    """Return, by partition, the range of offsets that are not archived yet.

    Raises ArchiveError if the log does not continue the archive: if the log ends before the archive's end, or begins
    after it.
    """
    ranges = {}
    for (topic, partition), log_end in sorted(end.items()):
        log_first = first[topic, partition]
        start = archived.get((topic, partition), log_first)
        if start > log_end:
            raise ArchiveError(
                f"{topic}/{partition} is archived up to offset {start}, but the log ends at {log_end}: "
                "this is the archive of another log"
            )
        if start < log_first:
            raise ArchiveError(
                f"{topic}/{partition} is archived up to offset {start}, but the log begins at {log_first}: the records "
                "between were deleted before they were archived. Start a new archive in another folder."
            )
        ranges[topic, partition] = (start, log_end)
    return ranges


async def archive(
    settings: Settings,
    location: str,
    *,
    topics: Sequence[str] = (),
    sign_key: Ed25519PrivateKey | None = None,
    on_progress: OnProgress = no_progress,
) -> ArchiveResult:
    """Add everything up to the present end of the log to the archive. Without ``topics``, all topics are archived.

    With ``sign_key`` the newest manifest is signed. A file belongs to the archive once its manifest is stored. If a
    killed writer left files without a manifest, the next one deletes them. Raises ArchiveError,
    aiokafka.errors.KafkaError, or OBJECT_STORE_ERRORS.
    """
    store = ObjectStore(location, create=True)
    chain = await read_chain(store)
    cluster = await log_topics.cluster_id(settings)
    if chain.manifests and chain.manifests[0].cluster_id != cluster:
        raise ArchiveError(
            f"{location} is the archive of Kafka cluster {chain.manifests[0].cluster_id}, not of {cluster}"
        )
    names = list(topics) or archived_topics()
    limits = await bounds(settings, names)
    ranges = ranges_to_archive(limits.first, limits.end, manifests.archived_ends(chain.manifests))
    writer = ChainWriter(store, chain, cluster, await _leftovers(store, chain.manifests))
    total, done = sum(end - first for first, end in ranges.values()), 0
    with tempfile.TemporaryDirectory(prefix="everyrun-archive-") as folder:
        for topic in names:
            files = TopicFiles(topic, Path(folder), writer.add)
            of_topic = {partition: range_ for partition, range_ in ranges.items() if partition[0] == topic}
            next_offsets = {number: first for (_, number), (first, _) in of_topic.items()}
            async for record_range in read_ranges(settings, of_topic):
                first = next_offsets[record_range.partition]
                await files.add(record_range, first)
                done += record_range.next_offset - first
                next_offsets[record_range.partition] = record_range.next_offset
                on_progress(done, total)
            await files.close()
    if sign_key is not None and writer.hash is not None:
        signature = sign(sign_key, writer.archive, writer.number, writer.hash)
        await store.put(manifests.signature_path(writer.number), msgspec.json.encode(signature) + b"\n")
    return ArchiveResult(writer.records, writer.number - len(chain.manifests), writer.number, writer.hash)


async def _leftovers(store: ObjectStore, known: Sequence[Manifest]) -> set[str]:
    """Return leftover files of killed writers: files whose number is higher than that of the newest manifest.

    Leftover files with the newest manifest's own number are deleted here. The writer that stored this manifest would
    have deleted them next, but it may have been killed first.
    """
    found = [path for folder in (manifests.RECORDS, manifests.DIGESTS) for path in await store.paths(folder)]
    named = {path for manifest in known[-1:] for path in (manifest.file, manifest.digests)}
    unnamed = {path: manifests.number_in(path) or 0 for path in found if path not in named}
    await store.delete(sorted(path for path, number in unnamed.items() if known and number == len(known)))
    return {path for path, number in unnamed.items() if number > len(known)}


class ChainWriter:
    """Adds files to the archive, each with the next manifest of the chain."""

    def __init__(self, store: ObjectStore, chain: ManifestChain, cluster_id: str, leftovers: set[str]) -> None:
        self._store = store
        self._cluster_id = cluster_id
        self._leftovers = leftovers
        self.archive = chain.manifests[0].archive if chain.manifests else str(uuid.uuid4())
        self.number = len(chain.manifests)
        self.hash = chain.hash
        self.records = 0

    async def add(self, file: DayFile) -> None:
        """Store a closed file, its digests, and then its manifest, which makes it part of the archive.

        Raises ArchiveError if another writer has stored a manifest with the same number.
        """
        number = self.number + 1
        hashes = file.hashes()
        manifest = Manifest(
            archive=self.archive,
            number=number,
            previous=self.hash,
            cluster_id=self._cluster_id,
            topic=file.topic,
            day=file.day,
            file=manifests.record_path(file.topic, file.day, number, hashes.records),
            bytes=file.path.stat().st_size,
            sha256=hashes.records,
            digests=manifests.digest_path(number, hashes.digests),
            digests_sha256=hashes.digests,
            count=file.content.count,
            content=file.content.hexdigest(),
            partitions=[file.covered[partition] for partition in sorted(file.covered)],
        )
        await self._store.put(manifest.file, file.path)
        await self._store.put(manifest.digests, file.digests_path)
        stored = manifests.to_bytes(manifest)
        try:
            await self._store.create(manifests.manifest_path(number), stored)
        except ObjectExistsError:
            taken = manifests.from_bytes(await self._store.get(manifests.manifest_path(number)))
            await self._store.delete(sorted({manifest.file, manifest.digests} - {taken.file, taken.digests}))
            raise ArchiveError(
                f"another run is writing to {self._store.location}: it stored manifest {number} first"
            ) from None
        self.number, self.hash = number, manifests.hash_of(stored)
        self.records += manifest.count
        file.remove()
        await self._delete_leftovers({manifest.file, manifest.digests})

    async def _delete_leftovers(self, own: set[str]) -> None:
        """Delete leftover files up to this number, except ``own``: they can no longer become part of the archive."""
        self._leftovers -= own
        old = {path for path in self._leftovers if (manifests.number_in(path) or 0) <= self.number}
        await self._store.delete(sorted(old))
        self._leftovers -= old
