"""Read the digests of the live log's records, to compare an archive with them."""

from __future__ import annotations

from typing import cast

from everyrun.log import topics as log_topics
from everyrun.log.reading import bounds, read_ranges
from everyrun.replay.archive.manifest import SHORT, Manifest, StampedRecord, digest
from everyrun.replay.errors import ArchiveError
from everyrun.settings import Settings

PartitionOffset = tuple[int, int]
"""A record's partition and offset."""

RecordDigest = tuple[PartitionOffset, bytes]
"""A record's partition and offset, and the first bytes of its digest."""


class LiveLog:
    """The live log that an archive should be a copy of."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._compacted = {t.name for t in log_topics.declared() if "compact" in t.config.get("cleanup.policy", "")}

    async def open(self, manifest: Manifest | None) -> None:
        """Look up the bounds of the log. Raises ArchiveError if the manifest is of another Kafka cluster."""
        cluster = await log_topics.cluster_id(self._settings)
        if manifest is not None and manifest.cluster_id != cluster:
            raise ArchiveError(f"the archive is of Kafka cluster {manifest.cluster_id}, but the log is of {cluster}")
        self._bounds = await bounds(self._settings, [topic.name for topic in log_topics.declared()])

    def compacted(self, topic: str) -> bool:
        """Return true if Kafka may have dropped records of the topic."""
        return topic in self._compacted

    def past_end(self, manifest: Manifest) -> list[str]:
        """List the partitions of which a manifest claims offsets that the log does not have."""
        found = []
        for covered in manifest.partitions:
            end = self._bounds.end.get((manifest.topic, covered.partition), 0)
            if covered.end > end:
                position = f"{manifest.topic}/{covered.partition}"
                found.append(f"the manifest covers {position} up to offset {covered.end}, but the log ends at {end}")
        return found

    async def digests(self, manifest: Manifest) -> list[RecordDigest] | None:
        """Return the digests of the log's records in a manifest's ranges; None if the log deleted some of them."""
        ranges = {}
        for covered in manifest.partitions:
            position = (manifest.topic, covered.partition)
            if self._bounds.first.get(position, 0) > covered.first:
                return None
            ranges[position] = (covered.first, min(covered.end, self._bounds.end.get(position, 0)))
        found: list[RecordDigest] = []
        async for record_range in read_ranges(self._settings, ranges):
            found += [((r.partition, r.offset), digest(cast(StampedRecord, r))[:SHORT]) for r in record_range.records]
        return found
