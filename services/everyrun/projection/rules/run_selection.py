"""What a poll changes, decided in memory: which run stands for each input, which are duplicates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from everyrun.projection.rules.merge import Run, merge
from everyrun.projection.rules.row_version import version_of_run

Home = tuple[str, int]
"""An attempt: (chunk, attempt)."""


class Row(NamedTuple):
    """A row of ``results``, as far as deciding and publishing need it. ``file`` and ``metadata`` are JSON text."""

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
    def home(self) -> Home:
        """The attempt that the row is counted in."""
        return self.chunk, self.attempt


class Decision(NamedTuple):
    """The row before, the run that now stands with its version, and the input's other runs, whole."""

    row: Row
    winner: Run
    version: str
    losers: tuple[Run, ...]


def version_of(run: Run) -> str:
    """The version of an input that this run stands for."""
    return version_of_run(run.run_id, run.final, run.order)


def decide_one(row: Row, seen: Run) -> Decision | None:
    """The decision for the common case: the input has no run yet, or it is this one. None where nothing changes."""
    version = version_of(seen)
    if version > row.version:
        return Decision(row, seen, version, ())
    if version == row.version and row.observed_at is not None and seen.observed_at < row.observed_at:
        return Decision(row, seen, version, ())
    return None


def decide(row: Row, known: Iterable[Run], seen: Iterable[Run]) -> Decision:
    """The decision from every run of the input: those known (standing and duplicates, whole) and those seen now."""
    runs: dict[str, Run] = {}
    for run in (*known, *seen):
        runs[run.run_id] = merge(runs[run.run_id], run) if run.run_id in runs else run
    winner = max(runs.values(), key=version_of)
    losers = tuple(sorted((run for run in runs.values() if run is not winner), key=lambda run: run.run_id))
    return Decision(row, winner, version_of(winner), losers)


def home_of(run: Run, row: Row) -> Home:
    """The attempt that a matched run belongs to."""
    return (run.binding.chunk, run.binding.attempt) if run.binding else row.home


def needs_all_runs(row: Row, seen: list[Run], has_duplicates: bool) -> bool:
    """Whether more than one run of the input is in play, so that all of them must be read."""
    return has_duplicates or len(seen) > 1 or (row.run_id is not None and row.run_id != seen[0].run_id)


class Deltas:
    """By how much the kept counters of each attempt move."""

    def __init__(self) -> None:
        self.counts: dict[Home, dict[str, int]] = {}
        self.runs: dict[Home, int] = {}
        self.duplicates: dict[Home, int] = {}

    def touch(self, home: Home) -> None:
        """Have the attempt looked at again, though its counters do not move."""
        self.counts.setdefault(home, {})

    def move(self, before: tuple[Home, str] | None, after: tuple[Home, str]) -> None:
        """An input is counted elsewhere now: at another attempt, or by another status."""
        if before is not None:
            self._add(*before, -1)
        self._add(*after, 1)

    def _add(self, home: Home, status: str, by: int) -> None:
        counts = self.counts.setdefault(home, {})
        counts[status] = counts.get(status, 0) + by

    def add_run(self, home: Home) -> None:
        """A run was seen for the first time."""
        self.runs[home] = self.runs.get(home, 0) + 1
        self.touch(home)

    def add_duplicate(self, home: Home, by: int) -> None:
        """A run became a duplicate (by=1), or is none any more (by=-1)."""
        self.duplicates[home] = self.duplicates.get(home, 0) + by
        self.touch(home)

    def homes(self) -> list[Home]:
        """Every attempt touched, sorted."""
        return sorted(self.counts)


def count(
    decision: Decision, before: Mapping[str, Home], duplicates_before: Mapping[str, Home], deltas: Deltas
) -> None:
    """Move the counters by one decision; ``before`` is where the runs known already are, duplicates included."""
    row = decision.row
    deltas.move((row.home, row.status), (home_of(decision.winner, row), decision.winner.status))
    for run in (decision.winner, *decision.losers):
        if run.run_id not in before:
            deltas.add_run(home_of(run, row))
    after = {run.run_id: home_of(run, row) for run in decision.losers}
    for run_id, home in duplicates_before.items():
        if run_id not in after:
            deltas.add_duplicate(home, -1)
    for run_id, home in after.items():
        if run_id not in duplicates_before:
            deltas.add_duplicate(home, 1)


def count_one(decision: Decision, deltas: Deltas) -> None:
    """``count`` for a decision of ``decide_one``: the run is the input's only one."""
    row, run = decision.row, decision.winner
    home = home_of(run, row)
    deltas.move((row.home, row.status), (home, run.status))
    if row.run_id is None:
        deltas.add_run(home)
