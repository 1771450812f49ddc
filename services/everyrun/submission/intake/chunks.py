"""Cutting a submission into chunks, each of which goes to Extend in one call. Pure."""

from __future__ import annotations


class Cutter:
    """Cuts by count and by bytes, whichever comes first; inputs keep their order."""

    def __init__(self, max_inputs: int, max_bytes: int) -> None:
        self._max_inputs = max_inputs
        self._max_bytes = max_bytes
        self._first = 1
        self._next = 1
        self._bytes = 0
        self.chunks: list[tuple[int, int]] = []

    def add(self, size: int) -> None:
        """Take the next input, of ``size`` bytes."""
        count = self._next - self._first
        if count and (count >= self._max_inputs or self._bytes + size > self._max_bytes):
            self._cut()
        self._next += 1
        self._bytes += size

    def finish(self) -> list[tuple[int, int]]:
        """All chunks, as first and last position, from 1, both included."""
        if self._next > self._first:
            self._cut()
        return self.chunks

    def _cut(self) -> None:
        self.chunks.append((self._first, self._next - 1))
        self._first, self._bytes = self._next, 0


def cut_chunks(sizes: list[int], max_inputs: int, max_bytes: int) -> list[tuple[int, int]]:
    """The chunks of inputs of these sizes: none is empty, none left out; only a single input may pass max_bytes."""
    cutter = Cutter(max_inputs, max_bytes)
    for size in sizes:
        cutter.add(size)
    return cutter.finish()


def chunk_id(submission_id: str, number: int) -> str:
    """The id of a submission's chunk, by its number from 1."""
    return f"{submission_id}.c{number:05d}"
