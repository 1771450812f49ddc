"""Positions become ranges, and a chunk is cut exactly where its inputs begin and cease to be cancelled."""

from __future__ import annotations

import random

import pytest

from everyrun.submission.cancellations.scope import multirange, parts_at, ranges_of, read_multirange


def test_positions_become_as_few_ranges_as_possible() -> None:
    assert ranges_of([5, 1, 2, 3, 3, 7]) == [(1, 3), (5, 5), (7, 7)]
    assert ranges_of([]) == []
    assert read_multirange(multirange([])) == []


@pytest.mark.parametrize(
    ("ranges", "parts"),
    [
        ([(11, 20)], ((0, 9),)),
        ([(1, 10)], ((0, 9),)),
        ([(12, 13)], ((0, 0), (1, 2), (3, 9))),
        ([(1, 11), (20, 30)], ((0, 0), (1, 8), (9, 9))),
        ([(11, 11), (13, 13)], ((0, 0), (1, 1), (2, 2), (3, 9))),
    ],
)
def test_a_chunk_is_cut_at_the_ranges(ranges: list[tuple[int, int]], parts: tuple[tuple[int, int], ...]) -> None:
    assert parts_at((11, 20), ranges) == parts


def test_each_input_is_in_one_part_and_each_part_is_cancelled_as_a_whole_or_not_at_all() -> None:
    chance = random.Random(1)
    for _ in range(300):
        first = chance.randint(1, 50)
        last = first + chance.randint(0, 30)
        cancelled = set(chance.sample(range(1, 100), chance.randint(1, 60)))
        parts = parts_at((first, last), ranges_of(cancelled))
        inputs = [[first + index for index in range(start, end + 1)] for start, end in parts]
        assert [position for part in inputs for position in part] == list(range(first, last + 1))
        assert all(len({position in cancelled for position in part}) == 1 for part in inputs)
