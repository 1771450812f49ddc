"""Chunks: by count and by bytes, none empty, no input left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everyrun.submission.intake.chunks import chunk_id, cut_chunks


@given(st.lists(st.integers(1, 120), max_size=60), st.integers(1, 9), st.integers(1, 200))
def test_every_input_is_in_one_chunk_and_each_chunk_as_large_as_it_may_be(
    sizes: list[int], most: int, max_bytes: int
) -> None:
    chunks = cut_chunks(sizes, most, max_bytes)
    assert [n for first, last in chunks for n in range(first, last + 1)] == list(range(1, len(sizes) + 1))
    weights = [sum(sizes[first - 1 : last]) for first, last in chunks]
    for (first, last), weight in zip(chunks, weights, strict=True):
        assert 1 <= last - first + 1 <= most
        assert weight <= max_bytes or first == last
        if last < len(sizes):
            # One more would have been one too many.
            assert last - first + 1 == most or weight + sizes[last] > max_bytes


def test_ids_of_chunks_sort_as_their_numbers() -> None:
    assert [chunk_id("sub_x", n) for n in (1, 10, 99999)] == sorted(chunk_id("sub_x", n) for n in (1, 10, 99999))
