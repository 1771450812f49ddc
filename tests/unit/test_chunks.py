"""Cutting submissions into chunks, and refused chunks into parts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.log.keys import lineage
from everyrun.submission.chunks import chunk_id, chunk_size, cut_chunks, cut_refused, part_id
from everyrun.submission.dispatch.classify import named_inputs
from everyrun.submission.ids import new_submission_id

sizes = st.integers(2, 1000)


@given(st.lists(st.integers(1, 120), max_size=60), st.integers(1, 9), st.integers(1, 200))
def test_every_input_is_in_one_chunk_and_chunks_are_as_large_as_allowed(
    sizes: list[int], most: int, max_bytes: int
) -> None:
    chunks = cut_chunks(sizes, most, max_bytes)
    assert [n for first, last in chunks for n in range(first, last + 1)] == list(range(1, len(sizes) + 1))
    weights = [sum(sizes[first - 1 : last]) for first, last in chunks]
    for (first, last), weight in zip(chunks, weights, strict=True):
        assert 1 <= last - first + 1 <= most
        assert weight <= max_bytes or first == last
        if last < len(sizes):
            # One more input would have exceeded a limit.
            assert last - first + 1 == most or weight + sizes[last] > max_bytes


def test_chunk_ids_sort_by_number() -> None:
    assert [chunk_id("sub_x", n) for n in (1, 10, 99999)] == sorted(chunk_id("sub_x", n) for n in (1, 10, 99999))


@given(sizes, st.lists(st.integers(-5, 1005), max_size=30))
def test_each_input_is_in_exactly_one_part(size: int, indexs: list[int]) -> None:
    parts = cut_refused(size, indexs)
    assert [index for first, last in parts for index in range(first, last + 1)] == list(range(size))
    assert len(parts) >= 2
    for first, last in parts:
        assert last - first + 1 <= math.ceil(size / 2)
        alone = {index for index in range(first, last + 1) if index in indexs}
        assert not alone or first == last


def test_a_chunk_of_one_input_is_not_cut() -> None:
    with pytest.raises(ValueError, match="one input"):
        cut_refused(1)


def send(size: int, bad: set[int], message: Callable[[list[int]], str]) -> tuple[list[int], set[int], set[int]]:
    """Send a chunk and its parts to an Extend that refuses calls with a bad input; return calls, accepted, refused."""
    calls: list[int] = []
    accepted: set[int] = set()
    refused: set[int] = set()
    waiting = [list(range(size))]
    while waiting:
        chunk = waiting.pop()
        calls.append(len(chunk))
        if not bad & set(chunk):
            accepted |= set(chunk)
        elif len(chunk) == 1:
            refused |= set(chunk)
        else:
            files = [{"id": f"file_{index}"} for index in chunk]
            parts = cut_refused(len(chunk), named_inputs(message([i for i, p in enumerate(chunk) if p in bad]), files))
            waiting += [chunk[first : last + 1] for first, last in parts]
    return calls, accepted, refused


MESSAGES: dict[str, Callable[[list[int]], str]] = {
    "none": lambda bad: "something is wrong",
    "first": lambda bad: f"inputs[{bad[0]}].file.id: no",
    "all": lambda bad: ", ".join(f"inputs[{index}]" for index in bad),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@given(size=sizes, data=st.data())
def test_only_bad_inputs_are_refused_in_few_calls(
    message: Callable[[list[int]], str], size: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    calls, accepted, refused = send(size, bad, message)
    assert refused == bad
    assert accepted == set(range(size)) - bad
    assert len(calls) - 1 <= len(bad) * 2 * math.ceil(math.log2(size))


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("size", [2, 3, 7, 100, 1000])
def test_calls_are_bounded_if_every_input_is_bad(size: int, message: Callable[[list[int]], str]) -> None:
    calls, accepted, refused = send(size, set(range(size)), message)
    assert (accepted, refused) == (set(), set(range(size)))
    assert len(calls) < 2 * size


@pytest.mark.parametrize("wrong", [lambda bad: "inputs[0]", lambda bad: f"inputs[{bad[0] + 1}]", lambda bad: "file_0"])
@given(size=sizes, data=st.data())
def test_a_wrong_name_refuses_no_good_input(wrong: Callable[[list[int]], str], size: int, data: st.DataObject) -> None:
    bad = {data.draw(st.integers(0, size - 1))}
    calls, accepted, refused = send(size, bad, wrong)
    assert (refused, len(accepted)) == (bad, size - 1)
    assert len(calls) - 1 <= 4 * math.ceil(math.log2(size))


@given(st.lists(st.integers(1, 1000), max_size=10))
def test_part_ids_sort_between_their_chunk_and_the_next_and_have_its_lineage(numbers: list[int]) -> None:
    submission = new_submission_id()
    assert "-" not in submission
    chunk, after = chunk_id(submission, 1), chunk_id(submission, 2)
    part = chunk
    for number in numbers:
        before, part = part, part_id(part, number)
        assert before < part < after
    assert lineage(part) == chunk


@pytest.mark.parametrize(
    ("windows", "size"),
    [((0, 0), 1000), ((50_000, 0), 1000), ((2000, 0), 500), ((50_000, 10), 2), ((1,), 1), ((), 1000)],
)
def test_a_chunk_has_at_most_a_quarter_of_each_window(windows: tuple[int, ...], size: int) -> None:
    assert chunk_size(1000, *windows) == size
