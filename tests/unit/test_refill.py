"""Restoring lost inputs: their positions, chunks and chunk numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everyrun.submission.chunks import cut_chunks
from everyrun.submission.intake.refill import Range, gaps, number_gaps, number_of


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.data())
def test_with_the_first_settings_every_chunk_is_restored_unchanged(sizes: list[int], data: st.DataObject) -> None:
    whole = list(enumerate(cut_chunks(sizes, 4, 60), 1))
    known = data.draw(st.lists(st.sampled_from(whole), unique=True)) if whole else []
    assert sorted([*known, *refilled(sizes, known, len(whole), 4, 60)]) == whole


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 7), st.data())
def test_with_other_settings_positions_and_numbers_stay_unique(
    sizes: list[int], most: int, data: st.DataObject
) -> None:
    whole = list(enumerate(cut_chunks(sizes, 4, 60), 1))
    known = data.draw(st.lists(st.sampled_from(whole), unique=True))
    after = [*known, *refilled(sizes, known, len(whole), most, 1000)]
    covered = sorted(n for _, (first, last) in after for n in range(first, last + 1))
    assert covered == list(range(1, len(sizes) + 1))
    assert len({number for number, _ in after}) == len(after)


def refilled(
    sizes: list[int], known: list[tuple[int, Range]], batches: int, most: int, size: int
) -> list[tuple[int, Range]]:
    cut = []
    for first, last in gaps([found for _, found in known], len(sizes)):
        pieces = cut_chunks(sizes[first - 1 : last], most, size)
        cut += [(start + first - 1, end + first - 1) for start, end in pieces]
    return number_gaps(known, cut, batches)


def test_overlapping_ranges_have_no_gap() -> None:
    assert gaps([(3, 8), (3, 5), (6, 8)], 10) == [(1, 2), (9, 10)]
    assert gaps([], 3) == [(1, 3)]
    assert gaps([(1, 3)], 3) == []


def test_a_part_has_the_number_of_its_chunk() -> None:
    assert [number_of(chunk) for chunk in ("sub_c1.c00012", "sub_c1.c00012-3", "sub_c1.c123456", "else")] == [
        12,
        12,
        123456,
        0,
    ]
