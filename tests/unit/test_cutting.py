"""A chunk that Extend refused is cut until what it refuses is alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.log.keys import lineage
from everyrun.submission.dispatch.cutting import cut, named, part_id
from everyrun.submission.intake.accept import new_submission_id
from everyrun.submission.intake.chunks import chunk_id

sizes = st.integers(2, 1000)


@given(sizes, st.lists(st.integers(-5, 1005), max_size=30))
def test_each_input_is_in_exactly_one_part(size: int, places: list[int]) -> None:
    parts = cut(size, places)
    assert [place for first, last in parts for place in range(first, last + 1)] == list(range(size))
    assert len(parts) >= 2
    for first, last in parts:
        assert last - first + 1 <= math.ceil(size / 2)
        alone = {place for place in range(first, last + 1) if place in places}
        assert not alone or first == last


def test_a_chunk_of_one_is_not_cut() -> None:
    with pytest.raises(ValueError, match="one input"):
        cut(1)


def send(size: int, bad: set[int], message: Callable[[list[int]], str]) -> tuple[list[int], set[int], set[int]]:
    """Send a chunk and its parts to an Extend that refuses a call with a bad input: calls, taken, refused alone."""
    calls: list[int] = []
    taken: set[int] = set()
    refused: set[int] = set()
    waiting = [list(range(size))]
    while waiting:
        chunk = waiting.pop()
        calls.append(len(chunk))
        if not bad & set(chunk):
            taken |= set(chunk)
        elif len(chunk) == 1:
            refused |= set(chunk)
        else:
            files = [{"id": f"file_{place}"} for place in chunk]
            parts = cut(len(chunk), named(message([i for i, p in enumerate(chunk) if p in bad]), files))
            waiting += [chunk[first : last + 1] for first, last in parts]
    return calls, taken, refused


MESSAGES: dict[str, Callable[[list[int]], str]] = {
    "none": lambda bad: "something is wrong",
    "first": lambda bad: f"inputs[{bad[0]}].file.id: no",
    "all": lambda bad: ", ".join(f"inputs[{place}]" for place in bad),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@given(size=sizes, data=st.data())
def test_only_bad_inputs_are_refused_in_few_calls(
    message: Callable[[list[int]], str], size: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    calls, taken, refused = send(size, bad, message)
    assert refused == bad
    assert taken == set(range(size)) - bad
    assert len(calls) - 1 <= len(bad) * 2 * math.ceil(math.log2(size))


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("size", [2, 3, 7, 100, 1000])
def test_the_calls_stay_bounded_if_every_input_is_bad(size: int, message: Callable[[list[int]], str]) -> None:
    calls, taken, refused = send(size, set(range(size)), message)
    assert (taken, refused) == (set(), set(range(size)))
    assert len(calls) < 2 * size


@pytest.mark.parametrize("wrong", [lambda bad: "inputs[0]", lambda bad: f"inputs[{bad[0] + 1}]", lambda bad: "file_0"])
@given(size=sizes, data=st.data())
def test_a_wrong_name_refuses_no_good_input(wrong: Callable[[list[int]], str], size: int, data: st.DataObject) -> None:
    bad = {data.draw(st.integers(0, size - 1))}
    calls, taken, refused = send(size, bad, wrong)
    assert (refused, len(taken)) == (bad, size - 1)
    assert len(calls) - 1 <= 4 * math.ceil(math.log2(size))


@given(st.lists(st.integers(1, 1000), max_size=10))
def test_the_parts_of_a_chunk_sort_between_it_and_the_next_and_name_it(numbers: list[int]) -> None:
    submission = new_submission_id()
    assert "-" not in submission
    chunk, after = chunk_id(submission, 1), chunk_id(submission, 2)
    part = chunk
    for number in numbers:
        before, part = part, part_id(part, number)
        assert before < part < after
    assert lineage(part) == chunk
