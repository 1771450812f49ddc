"""Compare lists of runs from Extend with the result tables, to find out which runs must be fetched. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from everyrun.projection.rules.merge import instant, own_time

#: Statuses that a run soon leaves anyway, so fetching the run is not worth a request (SDK 1.20.0,
#: types/workflow_run_status.py).
_PASSING = frozenset({"PENDING", "PROCESSING"})

#: The state of a run in a row of the tables: its status, and the time at which it reached that status according to the
#: run's own fields.
KnownState = tuple[str, datetime | None]


class ListedRun(NamedTuple):
    """A run as Extend's list shows it, which is without metadata (SDK 1.20.0, types/workflow_run_summary.py)."""

    run_id: str
    status: str
    batch_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    #: When the run reached its status, according to its endTime and reviewedAt.
    own: datetime | None = None

    @property
    def at_rest(self) -> bool:
        """True if the run keeps this status until a person or an API call changes it."""
        return self.status not in _PASSING


def _moment(entry: Mapping[str, Any], name: str) -> datetime | None:
    value = entry.get(name)
    return instant(value) if isinstance(value, str) else None


def read_page(data: Iterable[object]) -> list[ListedRun]:
    """Return the runs in the ``data`` of a page. Leave out entries without an id or a status."""
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
    """Return True if the tables have the listed state of the run, or a later state with the same status.

    ``known`` contains the run's states in the tables.
    """
    return any(status == run.status and (run.own is None or own is None or own >= run.own) for status, own in known)


def change_cutoff(at: datetime, grace: float) -> datetime | None:
    """Return the time after which a change is too recent to be fetched, because its webhook may still arrive.

    That time is ``grace`` seconds before ``at``, the present time by Extend's clock in whole seconds. If ``grace`` is
    0, return None: no change is too recent.
    """
    return at - timedelta(seconds=grace) if grace else None


def runs_to_fetch(
    listed: Iterable[ListedRun], known: Mapping[str, Collection[KnownState]], cutoff: datetime | None = None
) -> list[ListedRun]:
    """Return the runs at rest whose listed state is not in the tables. A run that is listed twice is returned once.

    ``known`` contains the states in the tables, by run id. Leave out runs that changed after ``cutoff``, because their
    webhooks may still arrive.
    """
    wanted = {}
    for run in listed:
        recent = cutoff is not None and run.updated_at is not None and run.updated_at > cutoff
        if run.at_rest and not recent and not is_known(run, known.get(run.run_id, ())):
            wanted[run.run_id] = run
    return list(wanted.values())


def runs_of_unknown_batches(listed: Iterable[ListedRun], known: Collection[str]) -> dict[str, list[ListedRun]]:
    """Return the listed runs of batches whose batchId is not in ``known``: by batchId, in the order of the list."""
    found: dict[str, list[ListedRun]] = {}
    for run in listed:
        if run.batch_id is not None and run.batch_id not in known:
            found.setdefault(run.batch_id, []).append(run)
    return found


def may_be_made_since(runs: Iterable[ListedRun], moment: datetime | None) -> bool:
    """Return True if the batch of these runs may have been made by a call at ``moment`` (Extend's time) or later.

    One call makes all runs of a batch. So if one of the runs was created earlier, no such call made the batch. Return
    True if the moment is not known (None).
    """
    return moment is None or all(run.created_at is None or run.created_at >= moment for run in runs)


def unidentified_runs(
    listed: Collection[ListedRun], known: Mapping[str, Collection[KnownState]], expected: int
) -> list[ListedRun]:
    """Return the runs that must be fetched to find out which inputs of a batch have no run.

    Inputs without a run exist only if the list has fewer runs than the batch has inputs (``expected``). To find these
    inputs, the runs in progress whose ids the tables do not have must be fetched: their metadata tell to which inputs
    they belong.
    """
    if len(listed) >= expected:
        return []
    return [run for run in listed if not run.at_rest and run.run_id not in known]
