"""Cut submissions into chunks, and refused chunks into parts. Pure.

A chunk goes to Extend in one call, which Extend refuses or accepts as a whole. So a refused chunk is cut again and
again, until each input that Extend refuses is alone in a chunk: docs/adr/0012-a-refused-chunk-is-cut.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from everyrun.log.keys import PART

Range = tuple[int, int]
"""The first and last position (from 1) or index (from 0) in a range, both included."""


class Cutter:
    """Cut inputs into chunks, in order.

    A chunk has at most ``max_inputs`` inputs, and at most ``max_bytes`` bytes unless it is a single input.
    """

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
        """Return all chunks, as ranges of positions."""
        if self._next > self._first:
            self._end_chunk()
        return self.chunks

    def _end_chunk(self) -> None:
        self.chunks.append((self._first, self._next - 1))
        self._first, self._bytes = self._next, 0


def cut_chunks(sizes: list[int], max_inputs: int, max_bytes: int) -> list[Range]:
    """Return the chunks for inputs of these sizes, as ranges of positions.

    Every input is in exactly one chunk, and no chunk is empty. Only a chunk of a single input can be larger than
    ``max_bytes``.
    """
    cutter = Cutter(max_inputs, max_bytes)
    for size in sizes:
        cutter.add(size)
    return cutter.finish()


def chunk_size(max_inputs: int, *windows: int) -> int:
    """Return the maximum number of inputs of a new chunk: ``max_inputs``, or a quarter of a smaller sending window.

    A chunk is sent only when the window has room for all of it. With chunks as large as the window, Extend would be
    idle between two chunks. A window of 0 means that there is none.
    """
    return min([max_inputs, *(max(1, window // 4) for window in windows if window)])


def chunk_id(submission_id: str, number: int) -> str:
    """Return the id of a submission's chunk, by its number from 1."""
    return f"{submission_id}.c{number:05d}"


def cut_refused(size: int, named: Sequence[int] = ()) -> tuple[Range, ...]:
    """Return the parts (at least two) of a refused chunk of ``size`` inputs, as ranges of indexes.

    Each input that Extend named is alone in a part, so it is refused only if a call with this input alone is refused.
    No other part has more than half of the inputs, so only a few more calls are needed if Extend named the wrong input.
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
    """Return as few ranges as possible, of about equal size and with at most ``max_size`` indexes each."""
    count = last - first + 1
    parts = -(-count // max_size)
    starts = [first - (-count * n // parts) for n in range(parts + 1)]
    return [(start, end - 1) for start, end in pairwise(starts)]


def part_id(chunk: str, number: int) -> str:
    """Return the id of a part of a chunk, by the number of the part from 1.

    From such an id, ``everyrun.log.keys.lineage`` returns the id of the chunk that was cut first.
    """
    return f"{chunk}{PART}{number}"
