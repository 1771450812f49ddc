"""Group items in order so that no group exceeds a maximum weight, and join or split polls. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from everyrun.log.reading import LogRecord, Partition, Poll, RecordRange

T = TypeVar("T")


def group_by_weight(
    items: Iterable[T], weight: Callable[[T], int], max_weight: int, max_count: int | None = None
) -> Iterator[list[T]]:
    """Yield the items in order, in groups of at most ``max_count`` items and a total weight of at most ``max_weight``.

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
    """Return the total number of bytes of the records' values."""
    return sum(len(record.value or b"") for record in records)


def join_polls(polls: Iterable[Poll | RecordRange]) -> list[Poll]:
    """Return one poll per partition, sorted by partition. The records of each partition must be given in order."""
    records: dict[Partition, list[LogRecord]] = {}
    for poll in polls:
        records.setdefault((poll.topic, poll.partition), []).extend(poll.records)
    return [Poll(topic, partition, joined) for (topic, partition), joined in sorted(records.items())]


def split_polls(polls: Iterable[Poll], max_records: int, max_bytes: int) -> Iterator[list[Poll]]:
    """Yield the records of the polls in order, in groups of at most ``max_records`` records and ``max_bytes`` bytes.

    A record that alone has more than ``max_bytes`` has a group of its own.
    """
    records = ((poll, record) for poll in polls for record in poll.records)
    for group in group_by_weight(records, lambda pair: len(pair[1].value or b""), max_bytes, max_records):
        cut = []
        for _, pairs in groupby(group, key=lambda pair: id(pair[0])):
            (poll, first), *rest = pairs
            cut.append(Poll(poll.topic, poll.partition, [first, *(record for _, record in rest)]))
        yield cut
