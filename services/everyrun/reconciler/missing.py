"""What a list of runs says that is not known yet. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from everyrun.projection.rules.merge import instant, own_time

#: Statuses that a run leaves by itself: not worth a Get (SDK 1.20.0, types/workflow_run_status.py).
_PASSING = frozenset({"PENDING", "PROCESSING"})

#: What a row knows of a run: its status, and when the run came to it by its own account.
Known = tuple[str, datetime | None]


class Listed(NamedTuple):
    """A run as a list shows it; lists carry no metadata (SDK 1.20.0, types/workflow_run_summary.py)."""

    run_id: str
    status: str
    batch_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    own: datetime | None = None

    @property
    def resting(self) -> bool:
        """Whether the run stays as it is until somebody does something."""
        return self.status not in _PASSING


def _moment(entry: Mapping[str, Any], name: str) -> datetime | None:
    value = entry.get(name)
    return instant(value) if isinstance(value, str) else None


def read_page(data: Iterable[object]) -> list[Listed]:
    """The runs of a page's ``data``; entries without an id or a status are left out."""
    runs = []
    for entry in data:
        if not isinstance(entry, dict):
            continue
        run_id, status, batch = entry.get("id"), entry.get("status"), entry.get("batchId")
        if isinstance(run_id, str) and run_id and isinstance(status, str):
            end, review = (entry.get(name) for name in ("endTime", "reviewedAt"))
            own = own_time(end if isinstance(end, str) else None, review if isinstance(review, str) else None)
            batch_id = batch if isinstance(batch, str) else None
            runs.append(Listed(run_id, status, batch_id, _moment(entry, "createdAt"), _moment(entry, "updatedAt"), own))
    return runs


def is_told(run: Listed, known: Collection[Known]) -> bool:
    """Whether a row has this state of the run, or a later end of it."""
    return any(status == run.status and (run.own is None or own is None or own >= run.own) for status, own in known)


def settled_before(at: datetime, grace: float) -> datetime | None:
    """Which changes are old enough, ``at`` being Extend's time: None where any is. That time is in whole seconds."""
    return at - timedelta(seconds=grace) if grace else None


def missing(
    listed: Iterable[Listed], known: Mapping[str, Collection[Known]], before: datetime | None = None
) -> list[Listed]:
    """The runs to Get: those that rest in a state which no row of theirs has yet, each once.

    A run that changed after ``before`` is left out: its webhook may be on its way.
    """
    wanted = {}
    for run in listed:
        recent = before is not None and run.updated_at is not None and run.updated_at > before
        if run.resting and not recent and not is_told(run, known.get(run.run_id, ())):
            wanted[run.run_id] = run
    return list(wanted.values())


def unknown_batches(listed: Iterable[Listed], known: Collection[str]) -> dict[str, list[Listed]]:
    """Of each batchId that is not known the runs listed, in the list's order."""
    found: dict[str, list[Listed]] = {}
    for run in listed:
        if run.batch_id is not None and run.batch_id not in known:
            found.setdefault(run.batch_id, []).append(run)
    return found


def made_since(runs: Iterable[Listed], moment: datetime | None) -> bool:
    """Whether a call at the moment (Extend's time) or later may have made the batch that these runs are of.

    Not where one of them was created before: a batch is made by one call. None: the moment is not known, so it may.
    """
    return moment is None or all(run.created_at is None or run.created_at >= moment for run in runs)


def unnamed(listed: Collection[Listed], known: Mapping[str, Collection[Known]], expected: int) -> list[Listed]:
    """The runs to Get in a batch that lists fewer runs than it has inputs, so that the inputs without one are known.

    Those under way that no row names; none where every input can have its run.
    """
    if len(listed) >= expected:
        return []
    return [run for run in listed if not run.resting and run.run_id not in known]
