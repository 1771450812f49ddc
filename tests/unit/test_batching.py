"""Groups keep the order and the limits, and lose nothing."""

from __future__ import annotations

import random

import pytest

from everyrun.log.batching import group_by_weight, join_polls, split_polls
from everyrun.log.reading import Poll, RecordRange
from tests.records import a_world, lay_out, logged


def test_groups_are_limited_in_weight_and_count() -> None:
    assert list(group_by_weight([3, 4, 9, 1, 1, 1, 1], lambda item: item, 7, 3)) == [[3, 4], [9], [1, 1, 1], [1]]
    assert list(group_by_weight([], len, 7)) == []


def test_polls_of_one_partition_are_joined() -> None:
    polls = [
        Poll("runs", 0, [logged("runs", 0, 0)]),
        RecordRange("batches", 0, [logged("batches", 0, 4)], 9),
        Poll("runs", 0, [logged("runs", 0, 1)]),
    ]
    joined = join_polls(polls)
    assert [(p.topic, p.partition, p.first, p.end) for p in joined] == [("batches", 0, 4, 5), ("runs", 0, 0, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_split_polls_hold_every_record_once_in_order(seed):
    chance = random.Random(seed)
    polls = [Poll(*position, records) for position, records in sorted(lay_out(a_world(chance)).items())]
    most, size = chance.choice((1, 3, 10, 1000)), chance.choice((100, 3000, 1 << 20))
    groups = list(split_polls(polls, most, size))
    again: dict = {}
    for group in groups:
        assert 0 < sum(len(poll.records) for poll in group) <= most
        assert all(poll.records for poll in group)
        values = [record.value for poll in group for record in poll.records]
        assert sum(map(len, values[:-1])) < size
        for poll in group:
            again.setdefault((poll.topic, poll.partition), []).extend(poll.records)
    assert again == {(poll.topic, poll.partition): list(poll.records) for poll in polls}
