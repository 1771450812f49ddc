"""Group items in order under a weight limit, and regroup the records of polls. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from everyrun.log.reading import LogRecord, Partition, Poll, RecordRange

T = TypeVar("T")


def group_by_weight(
    items: Iterable[T], weight: Callable[[T], int], max_weight: int, max_count: int | None = None
) -> Iterator[list[T]]:
    """Yield the items in order, in groups of at most ``max_count`` items and ``max_weight`` in total.

    An item heavier than ``max_weight`` has a group of its own.
    """
    group: list[T] = []
    total = 0
    for item in items:
        item_weight = weight(item)
        if group and (len(group) == max_count or total + item_weight > max_weight):
            yield group
            group, total = [], 0
        group.append(item)
        total += item_weight
    if group:
        yield group


def size_of(records: Iterable[LogRecord]) -> int:
    """Return the bytes of the records' values."""
    return sum(len(record.value or b"") for record in records)


def join_polls(polls: Iterable[Poll | RecordRange]) -> list[Poll]:
    """Return one poll for each partition, sorted by partition; each partition's records must be given in order."""
    records: dict[Partition, list[LogRecord]] = {}
    for poll in polls:
        records.setdefault((poll.topic, poll.partition), []).extend(poll.records)
    return [Poll(topic, partition, joined) for (topic, partition), joined in sorted(records.items())]


def split_polls(polls: Iterable[Poll], max_records: int, max_bytes: int) -> Iterator[list[Poll]]:
    """Yield the same polls in order, cut into groups of limited records and bytes; a larger record is alone."""
    records = ((poll, record) for poll in polls for record in poll.records)
    for group in group_by_weight(records, lambda pair: len(pair[1].value or b""), max_bytes, max_records):
        cut = []
        for _, pairs in groupby(group, key=lambda pair: id(pair[0])):
            (poll, first), *rest = pairs
            cut.append(Poll(poll.topic, poll.partition, [first, *(record for _, record in rest)]))
        yield cut
