"""Read and advance the offset up to which each partition is applied, in the transaction that changes the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import asyncpg

from everyrun.errors import EveryrunError
from everyrun.log.reading import OffsetRange, Partition, Poll
from everyrun.log.topics import LogIdentity
from everyrun.store.sql import Row, beside

_sql = beside(__file__, "apply.sql")

#: The topics from which the tables are made. Never change their order: the index of the log stores a topic as its
#: position in this tuple. A rebuild reads the topics in this order: ``batches`` first, so that an input usually has its
#: row before its runs are read.
INPUTS = ("batches", "runs", "deliveries", "quarantine")
#: The two topics with records about chunks. Their partitions with the same number hold records about the same chunks.
#: Such partitions are locked together, so that a transaction sees everything that was applied from the other topic.
JOINED = ("batches", "runs")


class GapError(Exception):
    """Earlier records must be applied first. ``gaps`` holds the first missing offset of each such partition."""

    def __init__(self, gaps: Mapping[Partition, int]) -> None:
        super().__init__(f"applied only up to {dict(gaps)}")
        self.gaps = dict(gaps)


class ForeignLogError(EveryrunError):
    """The tables were made from another log.

    Either that log is in another Kafka cluster, or the topics were since recreated or given more partitions.
    """


def lockable(partitions: Iterable[Partition]) -> list[Partition]:
    """Return the partitions to lock, sorted.

    For a partition of ``batches``, the partition of ``runs`` with the same number is added, and the other way round.
    """
    wanted = set()
    for topic, number in partitions:
        wanted.add((topic, number))
        if topic in JOINED:
            wanted.update((other, number) for other in JOINED)
    return sorted(wanted)


def split_at(poll: Poll, next_offset: int) -> tuple[Poll | None, Poll | None]:
    """Split a poll into the part that is already applied and the part that is not. An empty part is None.

    Raises GapError if records before the poll are missing.
    """
    if next_offset < poll.first:
        raise GapError({(poll.topic, poll.partition): next_offset})
    if next_offset >= poll.end:
        return poll, None
    if next_offset == poll.first:
        return None, poll
    applied = [record for record in poll.records if record.offset < next_offset]
    return Poll(poll.topic, poll.partition, applied), Poll(poll.topic, poll.partition, poll.records[len(applied) :])


async def lock(
    connection: asyncpg.Connection, partitions: Iterable[Partition], identity: LogIdentity
) -> dict[Partition, int]:
    """Lock the rows of the partitions until the transaction ends, and return each partition's next offset.

    Also locks the partitions that :func:`lockable` adds. Raises ForeignLogError if the tables were made from another
    log, or from topics with another number of partitions.
    """
    wanted = lockable(partitions)
    topics, numbers = [topic for topic, _ in wanted], [number for _, number in wanted]
    rows = await connection.fetch(_sql["lock_offsets"], topics, numbers)
    if len(rows) < len(wanted):
        # Some of these partitions have no row yet. The rows of other partitions tell from which log the tables were
        # made.
        for row in await connection.fetch(_sql["all_offsets"]):
            _refuse_foreign(row, identity)
        await connection.execute(_sql["insert_partitions"], topics, numbers, *identity)
        rows = await connection.fetch(_sql["lock_offsets"], topics, numbers)
    for row in rows:
        _refuse_foreign(row, identity)
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


def _refuse_foreign(row: Row, identity: LogIdentity) -> None:
    if row["cluster_id"] != identity.cluster_id:
        raise ForeignLogError(
            f"the tables come from the Kafka cluster {row['cluster_id']}, but this one is {identity.cluster_id}. "
            "Set EVERYRUN_KAFKA_BOOTSTRAP to the former, or drop the schema everyrun to rebuild it from this one."
        )
    if row["partitions"] != identity.partitions:
        raise ForeignLogError(
            f"the tables come from topics with {row['partitions']} partitions, but runs now has {identity.partitions}: "
            "a chunk's events before and after the change lie in different partitions. Rebuild the tables: "
            "everyrun rebuild --swap (docs/how-to/rebuild.md)."
        )


async def applied_offsets(connection: asyncpg.Connection, identity: LogIdentity) -> dict[Partition, int]:
    """Return the next offset of every partition. Raises ForeignLogError as :func:`lock` does."""
    rows = await connection.fetch(_sql["all_offsets"])
    for row in rows:
        _refuse_foreign(row, identity)
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


def missing(applied: Mapping[Partition, int], needed: Mapping[Partition, int]) -> dict[Partition, OffsetRange]:
    """Return the range of missing offsets of each partition that is not applied up to ``needed``."""
    return {p: (applied.get(p, 0), end) for p, end in needed.items() if applied.get(p, 0) < end}


def refuse_ahead(applied: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
    """Raise ForeignLogError if an applied offset is beyond the end of its partition in the log.

    Otherwise, the next records of that partition would be skipped, as if they were already applied. Callers must read
    ``applied`` before ``ends``. Otherwise, a record that is written and applied between the two reads would seem to be
    beyond the end.
    """
    ahead = {partition: offset for partition, offset in applied.items() if offset > ends.get(partition, 0)}
    if ahead:
        (topic, number), offset = min(ahead.items())
        raise ForeignLogError(
            f"the tables are ahead of the log: partition {number} of {topic} is applied up to {offset} but ends at "
            f"{ends.get((topic, number), 0)}, so the topic was recreated or truncated ({len(ahead)} partitions). "
            "Restore the topics, or drop the schema everyrun to rebuild it from the log as it is."
        )


def greatest(one: Mapping[Partition, int], other: Mapping[Partition, int]) -> dict[Partition, int]:
    """Return the greater of the two offsets of each partition."""
    return {partition: max(one.get(partition, 0), other.get(partition, 0)) for partition in {*one, *other}}


async def skip_empty(
    connection: asyncpg.Connection, partition: Partition, start: int, end: int, identity: LogIdentity
) -> None:
    """Advance a partition from ``start`` to ``end`` over offsets that hold no records.

    Do nothing if the partition's next offset is not ``start``: another worker has advanced it, or the tables were
    replaced. Raises ForeignLogError as :func:`lock` does.
    """
    async with connection.transaction():
        next_offsets = await lock(connection, [partition], identity)
        if next_offsets[partition] == start:
            await connection.execute(_sql["advance_offsets"], [partition[0]], [partition[1]], [end])


async def advance(connection: asyncpg.Connection, polls: Sequence[Poll]) -> None:
    """Set the next offset of each partition to the end of its poll."""
    await connection.execute(
        _sql["advance_offsets"],
        [poll.topic for poll in polls],
        [poll.partition for poll in polls],
        [poll.end for poll in polls],
    )
