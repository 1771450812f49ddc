"""Cut submissions into chunks, and refused chunks into parts. Pure.

A chunk goes to Extend in one call. Extend refuses a call as a whole, so a refused chunk is cut until the inputs that
Extend refuses are alone: docs/adr/0012-a-refused-chunk-is-cut.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from everyrun.log.keys import PART

Range = tuple[int, int]
"""First and last position (from 1) or index (from 0), both included."""


class Cutter:
    """Cut inputs into chunks, in order, so that each chunk stays within a number of inputs and of bytes."""

    def __init__(self, max_inputs: int, max_bytes: int) -> None:
        self._max_inputs = max_inputs
        self._max_bytes = max_bytes
        self._first = 1
        self._next = 1
        self._bytes = 0
        self.chunks: list[Range] = []

    def add(self, size: int) -> None:
        """Add the next input, of ``size`` bytes."""
        count = self._next - self._first
        if count and (count >= self._max_inputs or self._bytes + size > self._max_bytes):
            self._end_chunk()
        self._next += 1
        self._bytes += size

    def finish(self) -> list[Range]:
        """Return the positions of all chunks."""
        if self._next > self._first:
            self._end_chunk()
        return self.chunks

    def _end_chunk(self) -> None:
        self.chunks.append((self._first, self._next - 1))
        self._first, self._bytes = self._next, 0


def cut_chunks(sizes: list[int], max_inputs: int, max_bytes: int) -> list[Range]:
    """Return the chunks of inputs of these sizes.

    Every input is in one chunk, and no chunk is empty. Only a chunk of a single input can be larger than
    ``max_bytes``.
    """
    cutter = Cutter(max_inputs, max_bytes)
    for size in sizes:
        cutter.add(size)
    return cutter.finish()


def chunk_id(submission_id: str, number: int) -> str:
    """Return the id of a submission's chunk, by its number from 1."""
    return f"{submission_id}.c{number:05d}"


def cut_refused(size: int, named: Sequence[int] = ()) -> tuple[Range, ...]:
    """Return the parts (at least two) of a refused chunk of ``size`` inputs, as indexes.

    An input that Extend named gets a part of its own, so it is refused only if a call with it alone is refused. No
    other part holds more than half of the inputs, so a wrongly named input costs only a few calls.
    """
    if size < 2:
        raise ValueError("a chunk of one input cannot be cut")
    parts: list[Range] = []
    first = 0
    for index in (*sorted({index for index in named if 0 <= index < size}), size):
        if first < index:
            parts += _split_evenly(first, index - 1, -(-size // 2))
        if index < size:
            parts.append((index, index))
        first = index + 1
    return tuple(parts)


def _split_evenly(first: int, last: int, max_size: int) -> list[Range]:
    """Return as few ranges of about equal size as keep each within ``max_size``."""
    count = last - first + 1
    parts = -(-count // max_size)
    starts = [first - (-count * n // parts) for n in range(parts + 1)]
    return [(start, end - 1) for start, end in pairwise(starts)]


def part_id(chunk: str, number: int) -> str:
    """Return the id of a chunk's part, by its number from 1. ``lineage`` gives the chunk that was cut first."""
    return f"{chunk}{PART}{number}"
