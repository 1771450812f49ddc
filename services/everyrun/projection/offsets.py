"""How far the log has been applied: read and moved in the same transaction as the tables. The rule is pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from everyrun.errors import EveryrunError
from everyrun.log.topics import LogIdentity
from everyrun.projection.decode import Poll
from everyrun.store.sql import beside

_sql = beside(__file__, "apply.sql")

#: A chunk's two sides: the same partition of both is locked together, so that neither is applied unseen by the other.
JOINED = ("batches", "runs")

Position = tuple[str, int]
"""A partition: (short topic name, number)."""


class GapError(Exception):
    """The tables are behind the poll: the records from ``next_offset`` up to the poll must be applied first."""

    def __init__(self, gaps: Mapping[Position, int]) -> None:
        super().__init__(f"applied only up to {dict(gaps)}")
        self.gaps = dict(gaps)


class ForeignLogError(EveryrunError):
    """The tables were made from another log: another Kafka cluster's, or topics that were made anew or grew since."""


def lockable(positions: Iterable[Position]) -> list[Position]:
    """The partitions to lock for these, sorted: with each of batches or runs also the other's of the same number."""
    wanted = set()
    for topic, partition in positions:
        wanted.add((topic, partition))
        if topic in JOINED:
            wanted.update((other, partition) for other in JOINED)
    return sorted(wanted)


def divided(poll: Poll, next_offset: int) -> tuple[Poll | None, Poll | None]:
    """What of a poll is applied already, and what is not; None where that is nothing.

    Raises GapError where some before it are missing.
    """
    if next_offset < poll.first:
        raise GapError({(poll.topic, poll.partition): next_offset})
    if next_offset >= poll.end:
        return poll, None
    if next_offset == poll.first:
        return None, poll
    known = [record for record in poll.records if record.offset < next_offset]
    return Poll(poll.topic, poll.partition, known), Poll(poll.topic, poll.partition, poll.records[len(known) :])


async def lock(
    connection: asyncpg.Connection, positions: Iterable[Position], identity: LogIdentity
) -> dict[Position, int]:
    """Lock the rows of these partitions until the transaction ends; the next offset of each.

    Raises ForeignLogError if the tables came from another log, or from one of another number of partitions.
    """
    wanted = lockable(positions)
    topics, partitions = [topic for topic, _ in wanted], [partition for _, partition in wanted]
    rows = await connection.fetch(_sql["lock_offsets"], topics, partitions)
    if len(rows) < len(wanted):
        # The others' rows say which log the tables are of, those of these partitions not being there.
        for row in await connection.fetch(_sql["all_offsets"]):
            _refuse_foreign(row, identity)
        await connection.execute(_sql["know_partitions"], topics, partitions, *identity)
        rows = await connection.fetch(_sql["lock_offsets"], topics, partitions)
    for row in rows:
        _refuse_foreign(row, identity)
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


def _refuse_foreign(row: Any, identity: LogIdentity) -> None:
    if row["cluster_id"] != identity.cluster_id:
        raise ForeignLogError(
            f"these tables were made from the Kafka cluster {row['cluster_id']}, this one is {identity.cluster_id}. "
            "Point EVERYRUN_KAFKA_BOOTSTRAP at the former, or drop the schema everyrun to build it anew."
        )
    if row["partitions"] != identity.partitions:
        raise ForeignLogError(
            f"these tables were made from topics of {row['partitions']} partitions, and runs has {identity.partitions} "
            "now: a chunk's events before and after the change lie in different partitions. Make the tables again from "
            "the log as it is: everyrun rebuild --swap (docs/how-to/rebuild.md)."
        )


async def positions(connection: asyncpg.Connection, identity: LogIdentity) -> dict[Position, int]:
    """The next offset of every partition. Raises ForeignLogError as :func:`lock` does."""
    rows = await connection.fetch(_sql["all_offsets"])
    for row in rows:
        _refuse_foreign(row, identity)
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


def behind(applied: Mapping[Position, int], ends: Mapping[Position, int]) -> dict[Position, tuple[int, int]]:
    """What is missing in tables that are to be applied up to ``ends``: of each partition the first and the end."""
    return {place: (applied.get(place, 0), end) for place, end in ends.items() if applied.get(place, 0) < end}


def refuse_ahead(applied: Mapping[Position, int], ends: Mapping[Position, int]) -> None:
    """Raise ForeignLogError where more is applied than the log has; ``ends`` were asked for after ``applied`` was read.

    The records that come next would pass for those that were applied already, and be passed over.
    """
    ahead = {place: offset for place, offset in applied.items() if offset > ends.get(place, 0)}
    if ahead:
        (topic, partition), offset = min(ahead.items())
        raise ForeignLogError(
            f"the tables are ahead of the log: partition {partition} of {topic} is applied up to {offset} and ends at "
            f"{ends.get((topic, partition), 0)}, so the topic was made anew or cut off ({len(ahead)} partitions). "
            "Bring the topics back, or drop the schema everyrun to build it from the log as it is."
        )


def greatest(one: Mapping[Position, int], other: Mapping[Position, int]) -> dict[Position, int]:
    """Of each partition the greater offset of the two."""
    return {place: max(one.get(place, 0), other.get(place, 0)) for place in {*one, *other}}


async def pass_over(
    connection: asyncpg.Connection, place: Position, start: int, end: int, identity: LogIdentity
) -> None:
    """Say that a partition that is applied up to ``start`` is so up to ``end``: there is no record between.

    Nothing happens where it is applied up to elsewhere: others went on, or the tables were replaced. Raises
    ForeignLogError as :func:`lock` does.
    """
    async with connection.transaction():
        nexts = await lock(connection, [place], identity)
        if nexts[place] == start:
            await connection.execute(_sql["advance_offsets"], [place[0]], [place[1]], [end])


async def advance(connection: asyncpg.Connection, polls: Sequence[Poll]) -> None:
    """Say that these polls are applied."""
    await connection.execute(
        _sql["advance_offsets"],
        [poll.topic for poll in polls],
        [poll.partition for poll in polls],
        [poll.end for poll in polls],
    )
