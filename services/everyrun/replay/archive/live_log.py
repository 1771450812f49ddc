"""Read the live log and compute the digests of its records, to compare an archive with the log."""

from __future__ import annotations

from typing import cast

from everyrun.log import topics as log_topics
from everyrun.log.reading import bounds, read_ranges
from everyrun.replay.archive.manifest import SHORT, Manifest, StampedRecord, digest
from everyrun.replay.errors import ArchiveError
from everyrun.settings import Settings

PartitionOffset = tuple[int, int]
"""A record's place in its topic: partition and offset."""

RecordDigest = tuple[PartitionOffset, bytes]
"""A record's partition and offset, and the first bytes of its digest."""


class LiveLog:
    """The live log, of which the archive should be a copy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._compacted = {t.name for t in log_topics.declared() if "compact" in t.config.get("cleanup.policy", "")}

    async def open(self, manifest: Manifest | None) -> None:
        """Look up where each partition begins and ends. Raises ArchiveError if another Kafka cluster was archived."""
        cluster = await log_topics.cluster_id(self._settings)
        if manifest is not None and manifest.cluster_id != cluster:
            raise ArchiveError(f"the archive is of Kafka cluster {manifest.cluster_id}, but the log is of {cluster}")
        self._bounds = await bounds(self._settings, [topic.name for topic in log_topics.declared()])

    def compacted(self, topic: str) -> bool:
        """Return true if the topic is compacted: Kafka may have dropped records that the archive still has."""
        return topic in self._compacted

    def past_end(self, manifest: Manifest) -> list[str]:
        """Return a message for each partition in which the manifest covers offsets past the end of the log."""
        found = []
        for covered in manifest.partitions:
            end = self._bounds.end.get((manifest.topic, covered.partition), 0)
            if covered.end > end:
                partition = f"{manifest.topic}/{covered.partition}"
                found.append(f"the manifest covers {partition} up to offset {covered.end}, but the log ends at {end}")
        return found

    async def digests(self, manifest: Manifest) -> list[RecordDigest] | None:
        """Return the digests of the log's records at a manifest's offsets; None if the log has deleted some of them."""
        ranges = {}
        for covered in manifest.partitions:
            partition = (manifest.topic, covered.partition)
            if self._bounds.first.get(partition, 0) > covered.first:
                return None
            ranges[partition] = (covered.first, min(covered.end, self._bounds.end.get(partition, 0)))
        found: list[RecordDigest] = []
        async for record_range in read_ranges(self._settings, ranges):
            found += [((r.partition, r.offset), digest(cast(StampedRecord, r))[:SHORT]) for r in record_range.records]
        return found
