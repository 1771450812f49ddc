"""Select each input's current run, and compute how the selection changes the counters. Pure.

The row of an input shows one of several candidates: the runs of the input, its attempts without a run, and its tries
that wait to be sent. Each candidate has a *version*, and the one with the greatest version is selected. Versions are
compared as text. So the version of a row only grows, in whatever order the events arrive. A consumer that keeps, for
each input, the record with the greatest version has the newest state.

Each candidate belongs to a *try*: the first one, or the one that a retry made. A candidate of a newer try wins over
any candidate of an older one. The runs of older tries are *superseded*. Further runs of the same try are *duplicates*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from everyrun.log.keys import retry_of
from everyrun.projection.rules.merge import AttemptKey, Run, merge

_WAITING, _REFUSED, _SUBMITTED, _OPEN, _FINAL = "0", "1", "2", "3", "4"
#: The status of inputs whose new try waits to be sent.
WAITING = "WAITING"
#: Number of hexadecimal digits at the beginning of a version that hold the number of the retry.
_RETRY_DIGITS = 4
#: Ends an id within a version. It sorts after every hexadecimal digit.
_END = "g"
_COMPLEMENT = bytes(range(255, -1, -1))


def version_of_run(run_id: str, final: bool, order: str, retry: int = 0) -> str:
    """Return the version of a row whose current run has this id and this order, and was started by this retry.

    Within a try, a final run wins over an open one. Among runs of the same kind, the smallest run id wins. Among states
    of the same run, the greatest order wins.
    """
    return f"{_try(retry)}{_FINAL if final else _OPEN}{_smallest_first(run_id)}.{order}"


def version_of_attempt(chunk: str, attempt: int, refused: bool) -> str:
    """Return the version of a row without a run. It is less than that of any row of the same try with a run.

    A submitted attempt wins over a refused one. Among attempts of the same kind, the smallest (chunk, number) wins.
    """
    kind = _REFUSED if refused else _SUBMITTED
    return f"{_try(retry_of(chunk))}{kind}{_smallest_first(f'{chunk}/{attempt:06d}')}."


def version_of_retry(chunk: str) -> str:
    """Return the version of a row whose new try waits to be sent. It is the least of all versions of this try."""
    return f"{_try(retry_of(chunk))}{_WAITING}."


def _try(retry: int) -> str:
    return f"{retry:0{_RETRY_DIGITS}x}"


def retry_in(version: str) -> int:
    """Return the number of the retry in a version; 0 for the first try."""
    return int(version[:_RETRY_DIGITS], 16)


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
        """The attempt in the row: the one that started the current run or, without a run, was accepted or refused.

        Its number is 0 if the row's try waits to be sent.
        """
        return self.chunk, self.attempt


class Selection(NamedTuple):
    """The selection for an input: its current run, its new version and its other runs. ``row`` is its row before.

    There is no current run if the row's try is newer than those of all runs. The row then stays the same.
    """

    row: Row
    current: Run | None
    version: str
    others: tuple[Run, ...]

    def is_superseded(self, run: Run) -> bool:
        """Return True if the run belongs to an older try than the row."""
        return started_by(run) < retry_in(self.version)


def started_by(run: Run) -> int:
    """Return the number of the retry that started a run; 0 for a first try."""
    return retry_of(run.binding.chunk) if run.binding else 0


def version_of(run: Run) -> str:
    """Return the version of a row whose current run is ``run``."""
    return version_of_run(run.run_id, run.final, run.order, started_by(run))


def attempt_of(run: Run, row: Row) -> AttemptKey:
    """Return the attempt that started a run. ``row`` is the row of the input that the run is matched to."""
    return (run.binding.chunk, run.binding.attempt) if run.binding else row.attempt_key


def is_contested(row: Row, seen: list[Run], has_others: bool) -> bool:
    """Return True if the input has several runs or tries, so that all runs must be read in order to select one."""
    if has_others or len(seen) > 1 or (row.run_id is not None and row.run_id != seen[0].run_id):
        return True
    return started_by(seen[0]) != retry_in(row.version)


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
    newest = max(runs.values(), key=version_of)
    newer_try = started_by(newest) < retry_in(row.version)
    current, version = (None, row.version) if newer_try else (newest, version_of(newest))
    others = tuple(sorted((run for run in runs.values() if run is not current), key=lambda run: run.run_id))
    return Selection(row, current, version, others)


class OtherRun(NamedTuple):
    """The attempt of a run that is not the current one, and whether the run is superseded. If not: a duplicate."""

    attempt: AttemptKey
    superseded: bool


class CounterDeltas:
    """Changes to the counters of each attempt."""

    def __init__(self) -> None:
        self.counts: dict[AttemptKey, dict[str, int]] = {}
        self.runs: dict[AttemptKey, int] = {}
        self.duplicates: dict[AttemptKey, int] = {}
        self.superseded: dict[AttemptKey, int] = {}

    def touch(self, attempt: AttemptKey) -> None:
        """Include the attempt in the update, even if its counters do not change."""
        self.counts.setdefault(attempt, {})

    def move(self, before: tuple[AttemptKey, str] | None, after: tuple[AttemptKey, str]) -> None:
        """Move an input from one (attempt, status) to another; ``before`` is None for a new input.

        An input whose try waits to be sent belongs to no attempt, so it is not counted.
        """
        if before is not None:
            self._add(*before, -1)
        self._add(*after, 1)

    def _add(self, attempt: AttemptKey, status: str, by: int) -> None:
        if status == WAITING:
            return
        counts = self.counts.setdefault(attempt, {})
        counts[status] = counts.get(status, 0) + by

    def add_run(self, attempt: AttemptKey) -> None:
        """Count a run that was not known before."""
        self.runs[attempt] = self.runs.get(attempt, 0) + 1
        self.touch(attempt)

    def add_other(self, other: OtherRun, by: int) -> None:
        """Count a run that became a duplicate or superseded (by=1), or stopped being that (by=-1)."""
        counter = self.superseded if other.superseded else self.duplicates
        counter[other.attempt] = counter.get(other.attempt, 0) + by
        self.touch(other.attempt)

    def attempts(self) -> list[AttemptKey]:
        """Return every attempt that was touched, sorted."""
        return sorted(self.counts)


def count(
    selection: Selection,
    current_before: str | None,
    others_before: Mapping[str, OtherRun],
    deltas: CounterDeltas,
) -> None:
    """Add to ``deltas`` how one selection changes the counters.

    Before, ``current_before`` was the id of the current run, or None, and ``others_before`` holds the other runs by id.
    """
    row, current = selection.row, selection.current
    if current is None:
        deltas.touch(row.attempt_key)
    else:
        deltas.move((row.attempt_key, row.status), (attempt_of(current, row), current.status))
    for run in (*selection.others, *([current] if current else [])):
        if run.run_id != current_before and run.run_id not in others_before:
            deltas.add_run(attempt_of(run, row))
    after = {run.run_id: OtherRun(attempt_of(run, row), selection.is_superseded(run)) for run in selection.others}
    for run_id, other in others_before.items():
        if after.get(run_id) != other:
            deltas.add_other(other, -1)
    for run_id, other in after.items():
        if others_before.get(run_id) != other:
            deltas.add_other(other, 1)


def count_only(selection: Selection, deltas: CounterDeltas) -> None:
    """Add to ``deltas`` how a selection of ``select_only`` changes the counters. Faster than ``count``."""
    row, run = selection.row, selection.current
    assert run is not None, "select_only selects a run"
    attempt = attempt_of(run, row)
    deltas.move((row.attempt_key, row.status), (attempt, run.status))
    if row.run_id is None:
        deltas.add_run(attempt)
