"""Work with positions of inputs: ranges, and the parts of a chunk of which only some inputs are cancelled. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg

from everyrun.log.events import PositionRange
from everyrun.submission.chunks import Range


def ranges_of(positions: Iterable[int]) -> list[Range]:
    """Return the positions as as few ranges as possible, sorted."""
    ranges: list[Range] = []
    for position in sorted(set(positions)):
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], position)
        else:
            ranges.append((position, position))
    return ranges


def multirange(ranges: Iterable[Range]) -> list[asyncpg.Range[int]]:
    """Return the ranges as a value for an int4multirange of Postgres."""
    return [asyncpg.Range(first, last, upper_inc=True) for first, last in ranges]


def read_multirange(value: Iterable[Any]) -> list[Range]:
    """Return the ranges in a value of an int4multirange. Postgres writes each with an excluded upper bound."""
    return [(part.lower, part.upper - 1) for part in value]


def logged_ranges(ranges: Iterable[Range]) -> list[PositionRange]:
    """Return the ranges as an event contains them."""
    return [PositionRange(first, last) for first, last in ranges]


def parts_at(chunk: Range, ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Return the parts of a chunk, each either inside or outside of the ``ranges``, as ranges of indexes.

    ``chunk`` and ``ranges`` are ranges of positions. The ranges must be sorted, and must not touch each other.
    """
    first, last = chunk
    parts: list[Range] = []
    at = first
    for start, end in ranges:
        start, end = max(start, first), min(end, last)
        if start > end:
            continue
        if at < start:
            parts.append((at - first, start - 1 - first))
        parts.append((start - first, end - first))
        at = end + 1
    if at <= last:
        parts.append((at - first, last - first))
    return tuple(parts)
