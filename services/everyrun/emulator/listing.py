"""List runs in pages, filtered and sorted. The cursor of a page is valid only for the same query. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from everyrun.emulator import render
from everyrun.emulator.runs import STATUSES, Run
from everyrun.emulator.timeline import Timeline
from everyrun.emulator.validate import invalid

_FILTERS = ("status", "workflowId", "batchId", "fileNameContains", "sortBy", "sortDir")
#: Default and maximum of maxPageSize, from older docs of Extend: the docs of this API version give neither.
DEFAULT_PAGE, MAX_PAGE = 10, 1000

#: The place of a run in a list: (time of its creation or last change, its number). The next page continues after the
#: key of the last run on a page.
Key = tuple[float, int]
#: A function that returns runs in order. Its arguments are sortBy, True for descending, and the key to continue after.
Source = Callable[[str, bool, Key | None], Iterable[Run]]


def page_size(text: str | None) -> int:
    """Return the maxPageSize of a query. Raises ApiProblem if it is wrong."""
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= MAX_PAGE):
        raise invalid(f"maxPageSize: must be an integer from 1 to {MAX_PAGE}")
    return int(text)


def _bound_to(query: Mapping[str, str], filters: Sequence[str]) -> str:
    text = msgspec.json.encode([query.get(name) for name in filters])
    return hashlib.sha256(text).hexdigest()[:16]


def make_cursor(query: Mapping[str, str], filters: Sequence[str], key: Key) -> str:
    """Return a nextPageToken that continues after ``key``. It is valid only with the same values of the filters."""
    return base64.b64encode(msgspec.json.encode([_bound_to(query, filters), *key])).decode()


def read_cursor(query: Mapping[str, str], filters: Sequence[str]) -> Key | None:
    """Return the key in the query's nextPageToken, or None for the first page. Raises ApiProblem for a wrong token."""
    token = query.get("nextPageToken")
    if token is None:
        return None
    try:
        bound, moment, number = msgspec.json.decode(base64.b64decode(token, validate=True))
        key = float(moment), int(number)
    except (ValueError, TypeError, msgspec.DecodeError):
        raise invalid("nextPageToken: is not valid") from None
    if bound != _bound_to(query, filters):
        raise invalid("nextPageToken: belongs to a query with other filters")
    return key


def in_batch(runs: Sequence[Run]) -> Source:
    """Return a source of the runs of a batch."""

    def source(by: str, down: bool, after: Key | None) -> Iterable[Run]:
        def key(run: Run) -> Key:
            return (run.updated_at if by == "updatedAt" else run.created_at), run.number

        rest = [run for run in runs if after is None or (key(run) < after if down else key(run) > after)]
        return sorted(rest, key=key, reverse=down)

    return source


def in_all(runs: Sequence[Run], timeline: Timeline) -> Source:
    """Return a source of all runs. ``runs`` are in the order of creation; the number of a run is its index."""

    def source(by: str, down: bool, after: Key | None) -> Iterable[Run]:
        if by == "updatedAt":
            moment = None if after is None else after[0]
            return timeline.newest_first(moment) if down else timeline.oldest_first(moment)
        if down:
            first = len(runs) if after is None else min(after[1], len(runs))
            return (runs[number] for number in range(first - 1, -1, -1))
        return (runs[number] for number in range(0 if after is None else after[1] + 1, len(runs)))

    return source


def list_runs(
    source: Source, query: Mapping[str, str], workflow_made_at: float, now: float, clock_offset: float = 0.0
) -> dict[str, Any]:
    """Return a page of summaries of runs.

    By default, the run that changed last comes first (docs.extend.ai, list-workflow-runs).

    The times of the runs are shifted by ``clock_offset`` seconds. Raises ApiProblem if the query is wrong.
    """
    size = page_size(query.get("maxPageSize"))
    by, direction = query.get("sortBy", "updatedAt"), query.get("sortDir", "desc")
    if by not in ("updatedAt", "createdAt") or direction not in ("asc", "desc"):
        raise invalid("sortBy: updatedAt or createdAt; sortDir: asc or desc")
    if query.get("status", "PENDING") not in STATUSES:
        raise invalid(f"status: one of {', '.join(STATUSES)}")
    after = read_cursor(query, _FILTERS)
    status, workflow_id, name = query.get("status"), query.get("workflowId"), query.get("fileNameContains")

    def wanted(run: Run) -> bool:
        if run.deleted or run.listed_at > now or status not in (None, run.status):
            return False
        return workflow_id in (None, run.workflow_id) and (
            name is None or any(name in file["name"] for file in render.files(run))
        )

    found = list(islice(filter(wanted, source(by, direction == "desc", after)), size + 1))
    page: dict[str, Any] = {
        "object": "list",
        "data": [render.summary(run.by_clock(clock_offset), workflow_made_at) for run in found[:size]],
    }
    if len(found) > size:
        last = found[size - 1]
        key = (last.updated_at if by == "updatedAt" else last.created_at), last.number
        page["nextPageToken"] = make_cursor(query, _FILTERS, key)
    return page
