"""What a list of runs says that is not known yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from everyrun.projection.merge import instant

#: Statuses that a run leaves by itself: not worth a Get (SDK 1.20.0, types/workflow_run_status.py).
_PASSING = frozenset({"PENDING", "PROCESSING"})


class Listed(NamedTuple):
    """A run as a list shows it; lists carry no metadata (SDK 1.20.0, types/workflow_run_summary.py)."""

    run_id: str
    status: str
    batch_id: str | None
    created_at: datetime | None
    updated_at: str


def read_page(data: Iterable[object]) -> list[Listed]:
    """The runs of a page's ``data``; entries without an id or a status are left out."""
    runs = []
    for entry in data:
        if not isinstance(entry, dict):
            continue
        run_id, status, batch = entry.get("id"), entry.get("status"), entry.get("batchId")
        if isinstance(run_id, str) and run_id and isinstance(status, str):
            created, updated = entry.get("createdAt"), entry.get("updatedAt")
            runs.append(
                Listed(
                    run_id,
                    status,
                    batch if isinstance(batch, str) else None,
                    instant(created) if isinstance(created, str) else None,
                    updated if isinstance(updated, str) else "",
                )
            )
    return runs


def missing(
    listed: Iterable[Listed], known: Mapping[str, Iterable[str]], asked: Mapping[str, tuple[str, str]]
) -> list[Listed]:
    """The runs to Get: those that rest in a status which no row of theirs has yet, each once.

    ``known`` holds the statuses of each run's rows; ``asked`` the status and updatedAt a run was listed with when it
    was last fetched: the same again would tell nothing new.
    """
    wanted = {}
    for run in listed:
        if run.status in _PASSING or run.status in known.get(run.run_id, ()):
            continue
        if asked.get(run.run_id) != (run.status, run.updated_at):
            wanted[run.run_id] = run
    return list(wanted.values())


def unknown_batches(listed: Iterable[Listed], known: Iterable[str]) -> dict[str, str]:
    """Of each batchId that is not known one run id, in the list's order."""
    known = set(known)
    found: dict[str, str] = {}
    for run in listed:
        if run.batch_id is not None and run.batch_id not in known:
            found.setdefault(run.batch_id, run.run_id)
    return found
