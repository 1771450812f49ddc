"""Listing runs: filters, order, pages whose cursor is bound to the query. Pure."""

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
#: Neither the range nor the default of maxPageSize is documented for this version; these are the older docs'.
DEFAULT_PAGE, MAX_PAGE = 10, 1000

#: (time of creation or last change, number) of the run a page ended with.
Key = tuple[float, int]
#: Given sortBy, whether descending, and where to go on: the runs in that order.
Source = Callable[[str, bool, Key | None], Iterable[Run]]


def page_size(text: str | None) -> int:
    """maxPageSize. Raises ApiProblem."""
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= MAX_PAGE):
        raise invalid(f"maxPageSize: must be an integer from 1 to {MAX_PAGE}")
    return int(text)


def _bound_to(query: Mapping[str, str], filters: Sequence[str]) -> str:
    text = msgspec.json.encode([query.get(name) for name in filters])
    return hashlib.sha256(text).hexdigest()[:16]


def make_cursor(query: Mapping[str, str], filters: Sequence[str], key: Key) -> str:
    """A nextPageToken that goes on after ``key``, for the same values of the filters only."""
    return base64.b64encode(msgspec.json.encode([_bound_to(query, filters), *key])).decode()


def read_cursor(query: Mapping[str, str], filters: Sequence[str]) -> Key | None:
    """The key in the query's nextPageToken, None where it has none. Raises ApiProblem."""
    token = query.get("nextPageToken")
    if token is None:
        return None
    try:
        bound, moment, number = msgspec.json.decode(base64.b64decode(token, validate=True))
        key = float(moment), int(number)
    except (ValueError, TypeError, msgspec.DecodeError):
        raise invalid("nextPageToken: not one of ours") from None
    if bound != _bound_to(query, filters):
        raise invalid("nextPageToken: belongs to a query with other filters")
    return key


def in_batch(runs: Sequence[Run]) -> Source:
    """A batch's runs."""

    def source(by: str, down: bool, after: Key | None) -> Iterable[Run]:
        def key(run: Run) -> Key:
            return (run.updated_at if by == "updatedAt" else run.created_at), run.number

        rest = [run for run in runs if after is None or (key(run) < after if down else key(run) > after)]
        return sorted(rest, key=key, reverse=down)

    return source


def in_all(runs: Sequence[Run], timeline: Timeline) -> Source:
    """All runs; ``runs`` are in the order of their creation, and a run's number is its place."""

    def source(by: str, down: bool, after: Key | None) -> Iterable[Run]:
        if by == "updatedAt":
            moment = None if after is None else after[0]
            return timeline.newest_first(moment) if down else timeline.oldest_first(moment)
        if down:
            first = len(runs) if after is None else min(after[1], len(runs))
            return (runs[number] for number in range(first - 1, -1, -1))
        return (runs[number] for number in range(0 if after is None else after[1] + 1, len(runs)))

    return source


def list_runs(source: Source, query: Mapping[str, str], born: float, now: float, ahead: float = 0.0) -> dict[str, Any]:
    """A page of summaries, by default the newest updatedAt first (docs.extend.ai, list-workflow-runs).

    Times are shown by a clock that is ``ahead`` by so many seconds.

    Raises ApiProblem.
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
        "data": [render.summary(run.by_clock(ahead), born) for run in found[:size]],
    }
    if len(found) > size:
        last = found[size - 1]
        key = (last.updated_at if by == "updatedAt" else last.created_at), last.number
        page["nextPageToken"] = make_cursor(query, _FILTERS, key)
    return page
