"""Select each input's current run, and compute how the selection changes the counters. Pure.

The row of an input shows one of several candidates: the runs of the input, and its attempts without a run. Each
candidate has a *version*, and the one with the greatest version is selected. Versions are compared as text. So the
version of a row only grows, in whatever order the events arrive. A consumer that keeps, for each input, the record with
the greatest version has the newest state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from everyrun.projection.rules.merge import AttemptKey, Run, merge

_REFUSED, _SUBMITTED, _OPEN, _FINAL = "0", "1", "2", "3"
#: Ends an id within a version. It sorts after every hexadecimal digit.
_END = "g"
_COMPLEMENT = bytes(range(255, -1, -1))


def version_of_run(run_id: str, final: bool, order: str) -> str:
    """Return the version of a row whose current run has this id and this order.

    A final run wins over an open one. Among runs of the same kind, the smallest run id wins. Among states of the same
    run, the greatest order wins.
    """
    return f"{_FINAL if final else _OPEN}{_smallest_first(run_id)}.{order}"


def version_of_attempt(chunk: str, attempt: int, refused: bool) -> str:
    """Return the version of a row without a run. It is less than that of any row with a run.

    A submitted attempt wins over a refused one. Among attempts of the same kind, the smallest (chunk, number) wins.
    """
    return f"{_REFUSED if refused else _SUBMITTED}{_smallest_first(f'{chunk}/{attempt:06d}')}."


def order_in(version: str) -> str:
    """Return the order (:func:`everyrun.projection.rules.merge.order_of`) in a version; '' if the row has no run."""
    return version.partition(".")[2]


def _smallest_first(identifier: str) -> str:
    # The greatest version is selected, and it must be that of the smallest id. So the bytes of the id are complemented.
    # For the same reason, the end mark makes the result for an id greater than the result for any longer id that begins
    # with the same characters.
    return identifier.encode("utf-8", "surrogatepass").translate(_COMPLEMENT).hex() + _END


class Row(NamedTuple):
    """The columns of ``results`` that selecting and publishing need. ``file`` and ``metadata`` are JSON text."""

    input_id: str
    external_id: str
    submission_id: str
    position: int
    chunk: str
    attempt: int
    batch_id: str | None
    run_id: str | None
    status: str
    version: str
    observed_at: datetime | None
    file: bytes
    metadata: bytes

    @property
    def attempt_key(self) -> AttemptKey:
        """The attempt in the row: the one that started the current run or, without a run, was accepted or refused."""
        return self.chunk, self.attempt


class Selection(NamedTuple):
    """The selection for an input: its current run, its new version and its other runs. ``row`` is its row before."""

    row: Row
    current: Run
    version: str
    duplicates: tuple[Run, ...]


def version_of(run: Run) -> str:
    """Return the version of a row whose current run is ``run``."""
    return version_of_run(run.run_id, run.final, run.order)


def attempt_of(run: Run, row: Row) -> AttemptKey:
    """Return the attempt that started a run. ``row`` is the row of the input that the run is matched to."""
    return (run.binding.chunk, run.binding.attempt) if run.binding else row.attempt_key


def is_contested(row: Row, seen: list[Run], has_duplicates: bool) -> bool:
    """Return True if the input has several runs, so that all of them must be read in order to select one."""
    return has_duplicates or len(seen) > 1 or (row.run_id is not None and row.run_id != seen[0].run_id)


def select_only(row: Row, seen: Run) -> Selection | None:
    """Return the selection in the common case that the input's only run is ``seen``; None if the row stays the same."""
    version = version_of(seen)
    if version > row.version:
        return Selection(row, seen, version, ())
    if version == row.version and row.observed_at is not None and seen.observed_at < row.observed_at:
        return Selection(row, seen, version, ())
    return None


def select(row: Row, known: Iterable[Run], seen: Iterable[Run]) -> Selection:
    """Return the selection from all runs of the input: those ``known`` before, and those ``seen`` in these polls."""
    runs: dict[str, Run] = {}
    for run in (*known, *seen):
        runs[run.run_id] = merge(runs[run.run_id], run) if run.run_id in runs else run
    current = max(runs.values(), key=version_of)
    duplicates = tuple(sorted((run for run in runs.values() if run is not current), key=lambda run: run.run_id))
    return Selection(row, current, version_of(current), duplicates)


class CounterDeltas:
    """Changes to the counters of each attempt."""

    def __init__(self) -> None:
        self.counts: dict[AttemptKey, dict[str, int]] = {}
        self.runs: dict[AttemptKey, int] = {}
        self.duplicates: dict[AttemptKey, int] = {}

    def touch(self, attempt: AttemptKey) -> None:
        """Include the attempt in the update, even if its counters do not change."""
        self.counts.setdefault(attempt, {})

    def move(self, before: tuple[AttemptKey, str] | None, after: tuple[AttemptKey, str]) -> None:
        """Move an input from one (attempt, status) to another; ``before`` is None for a new input."""
        if before is not None:
            self._add(*before, -1)
        self._add(*after, 1)

    def _add(self, attempt: AttemptKey, status: str, by: int) -> None:
        counts = self.counts.setdefault(attempt, {})
        counts[status] = counts.get(status, 0) + by

    def add_run(self, attempt: AttemptKey) -> None:
        """Count a run that was not known before."""
        self.runs[attempt] = self.runs.get(attempt, 0) + 1
        self.touch(attempt)

    def add_duplicate(self, attempt: AttemptKey, by: int) -> None:
        """Count a run that became a duplicate (by=1), or stopped being one (by=-1)."""
        self.duplicates[attempt] = self.duplicates.get(attempt, 0) + by
        self.touch(attempt)

    def attempts(self) -> list[AttemptKey]:
        """Return every attempt that was touched, sorted."""
        return sorted(self.counts)


def count(
    selection: Selection,
    before: Mapping[str, AttemptKey],
    duplicates_before: Mapping[str, AttemptKey],
    deltas: CounterDeltas,
) -> None:
    """Add to ``deltas`` how one selection changes the counters.

    ``before`` holds, by run id, the attempt of each run that was known before, including duplicates.
    ``duplicates_before`` holds the same, but only for duplicates.
    """
    row = selection.row
    deltas.move((row.attempt_key, row.status), (attempt_of(selection.current, row), selection.current.status))
    for run in (selection.current, *selection.duplicates):
        if run.run_id not in before:
            deltas.add_run(attempt_of(run, row))
    after = {run.run_id: attempt_of(run, row) for run in selection.duplicates}
    for run_id, attempt in duplicates_before.items():
        if run_id not in after:
            deltas.add_duplicate(attempt, -1)
    for run_id, attempt in after.items():
        if run_id not in duplicates_before:
            deltas.add_duplicate(attempt, 1)


def count_only(selection: Selection, deltas: CounterDeltas) -> None:
    """Add to ``deltas`` how a selection of ``select_only`` changes the counters. Faster than ``count``."""
    row, run = selection.row, selection.current
    attempt = attempt_of(run, row)
    deltas.move((row.attempt_key, row.status), (attempt, run.status))
    if row.run_id is None:
        deltas.add_run(attempt)
