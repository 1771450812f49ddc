"""Listing runs: filters, order, pages whose cursor is bound to the query. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from everyrun.emulator import render
from everyrun.emulator.runs import Run
from everyrun.emulator.validate import invalid

_FILTERS = ("status", "workflowId", "batchId", "fileNameContains", "sortBy", "sortDir")
#: Neither the range nor the default of maxPageSize is documented for this version; these are the older docs'.
DEFAULT_PAGE, MAX_PAGE = 10, 1000


def page_size(text: str | None) -> int:
    """maxPageSize. Raises ApiProblem."""
    if text is None:
        return DEFAULT_PAGE
    if not text.isdigit() or not 1 <= int(text) <= MAX_PAGE:
        raise invalid(f"maxPageSize: must be an integer from 1 to {MAX_PAGE}")
    return int(text)


def _bound_to(query: Mapping[str, str]) -> str:
    text = msgspec.json.encode([query.get(name) for name in _FILTERS])
    return hashlib.sha256(text).hexdigest()[:16]


def _cursor(query: Mapping[str, str], key: tuple[float, int]) -> str:
    return base64.b64encode(msgspec.json.encode([_bound_to(query), *key])).decode()


def _after(query: Mapping[str, str]) -> tuple[float, int] | None:
    token = query.get("nextPageToken")
    if token is None:
        return None
    try:
        bound, moment, number = msgspec.json.decode(base64.b64decode(token, validate=True))
        key = float(moment), int(number)
    except (ValueError, TypeError, msgspec.DecodeError):
        raise invalid("nextPageToken: not one of ours") from None
    if bound != _bound_to(query):
        raise invalid("nextPageToken: belongs to a query with other filters")
    return key


def list_runs(runs: Iterable[Run], query: Mapping[str, str], born: float, now: float) -> dict[str, Any]:
    """A page of summaries, by default the newest updatedAt first (docs.extend.ai, list-workflow-runs).

    Raises ApiProblem.
    """
    size = page_size(query.get("maxPageSize"))
    by, direction = query.get("sortBy", "updatedAt"), query.get("sortDir", "desc")
    if by not in ("updatedAt", "createdAt") or direction not in ("asc", "desc"):
        raise invalid("sortBy: updatedAt or createdAt; sortDir: asc or desc")
    after = _after(query)
    down = direction == "desc"

    def key(run: Run) -> tuple[float, int]:
        return (run.updated_at if by == "updatedAt" else run.created_at), run.number

    def wanted(run: Run) -> bool:
        if run.deleted or run.listed_at > now:
            return False
        if query.get("status") not in (None, run.status) or query.get("workflowId") not in (None, run.workflow_id):
            return False
        name = query.get("fileNameContains")
        if name is not None and name not in render.file(run)["name"]:
            return False
        return after is None or (key(run) < after if down else key(run) > after)

    found = sorted((run for run in runs if wanted(run)), key=key, reverse=down)
    page: dict[str, Any] = {"object": "list", "data": [render.summary(run, born) for run in found[:size]]}
    if len(found) > size:
        page["nextPageToken"] = _cursor(query, key(found[size - 1]))
    return page
