"""Find out what a list of runs shows that the tables do not have. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from everyrun.projection.rules.merge import instant, own_time

#: Statuses that do not last, so they are not worth a request (SDK 1.20.0, types/workflow_run_status.py).
_PASSING = frozenset({"PENDING", "PROCESSING"})

#: The state of a run in a row: its status, and when it reached that status by its own times.
KnownState = tuple[str, datetime | None]


class ListedRun(NamedTuple):
    """A run as a list shows it. Lists carry no metadata (SDK 1.20.0, types/workflow_run_summary.py)."""

    run_id: str
    status: str
    batch_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    #: When the run reached its status, by its own times.
    own: datetime | None = None

    @property
    def at_rest(self) -> bool:
        """True if the status stays until a person or a caller changes it."""
        return self.status not in _PASSING


def _moment(entry: Mapping[str, Any], name: str) -> datetime | None:
    value = entry.get(name)
    return instant(value) if isinstance(value, str) else None


def read_page(data: Iterable[object]) -> list[ListedRun]:
    """Return the runs of a page's ``data``, without entries that have no id or no status."""
    runs = []
    for entry in data:
        if not isinstance(entry, dict):
            continue
        run_id, status, batch = entry.get("id"), entry.get("status"), entry.get("batchId")
        if isinstance(run_id, str) and run_id and isinstance(status, str):
            end, review = (entry.get(name) for name in ("endTime", "reviewedAt"))
            own = own_time(end if isinstance(end, str) else None, review if isinstance(review, str) else None)
            batch_id = batch if isinstance(batch, str) else None
            created_at, updated_at = _moment(entry, "createdAt"), _moment(entry, "updatedAt")
            runs.append(ListedRun(run_id, status, batch_id, created_at, updated_at, own))
    return runs


def is_known(run: ListedRun, known: Collection[KnownState]) -> bool:
    """Return True if a row has this state of the run, or the same status reached later."""
    return any(status == run.status and (run.own is None or own is None or own >= run.own) for status, own in known)


def change_cutoff(at: datetime, grace: float) -> datetime | None:
    """Return the time after which a change is too recent to fetch: ``grace`` seconds before Extend's time ``at``.

    Return None if there is no grace. Extend's time is in whole seconds.
    """
    return at - timedelta(seconds=grace) if grace else None


def runs_to_fetch(
    listed: Iterable[ListedRun], known: Mapping[str, Collection[KnownState]], cutoff: datetime | None = None
) -> list[ListedRun]:
    """Return the runs at rest whose state is not in the tables, each once.

    Leave out a run that changed after ``cutoff``: its webhook may still arrive.
    """
    wanted = {}
    for run in listed:
        recent = cutoff is not None and run.updated_at is not None and run.updated_at > cutoff
        if run.at_rest and not recent and not is_known(run, known.get(run.run_id, ())):
            wanted[run.run_id] = run
    return list(wanted.values())


def runs_of_unknown_batches(listed: Iterable[ListedRun], known: Collection[str]) -> dict[str, list[ListedRun]]:
    """Return the listed runs of each batch that is not known, by batchId, in the order of the list."""
    found: dict[str, list[ListedRun]] = {}
    for run in listed:
        if run.batch_id is not None and run.batch_id not in known:
            found.setdefault(run.batch_id, []).append(run)
    return found


def may_be_made_since(runs: Iterable[ListedRun], moment: datetime | None) -> bool:
    """Return True if a call at the moment (Extend's time) or later may have made the batch of these runs.

    One call makes a whole batch, so a run that was created before the moment rules it out. If the moment is not
    known (None), return True.
    """
    return moment is None or all(run.created_at is None or run.created_at >= moment for run in runs)


def unidentified_runs(
    listed: Collection[ListedRun], known: Mapping[str, Collection[KnownState]], expected: int
) -> list[ListedRun]:
    """Return the runs to fetch to find out which inputs of a batch have no run.

    If the list has fewer runs than the batch has inputs, these are the runs in progress that no row names. Else every
    input can have its run, and none needs to be fetched.
    """
    if len(listed) >= expected:
        return []
    return [run for run in listed if not run.at_rest and run.run_id not in known]
