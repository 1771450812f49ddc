"""Serve histories over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI
from msgspec import UNSET, Meta, UnsetType

from everyrun.http import scope
from everyrun.openapi import Problem, answers
from everyrun.replay.history.historian import Historian, History


class IndexBehind(Problem, frozen=True, kw_only=True):
    """Too much of the log is not indexed yet, or the service is unavailable for another reason."""

    indexed: Annotated[int | UnsetType, Meta(description="Number of records that are indexed.")] = UNSET
    total: Annotated[int | UnsetType, Meta(description="Number of records of the log.")] = UNSET


class NoHistory(Problem, frozen=True, kw_only=True):
    """No event mentions the id."""

    did_you_mean: Annotated[list[str], Meta(description="Full ids that the given short id may mean.")]


def history_routes(app: FastAPI, get_historian: Callable[[], Historian]) -> None:
    """Add the route for histories. ``get_historian`` may raise ApiError while there is no historian yet."""

    @app.get("/v1/history/{identifier:path}", dependencies=[scope("read")])
    @answers(
        History,
        {
            404: ("NOT_FOUND: no event mentions the id.", NoHistory),
            503: (
                "INDEX_BEHIND: too much of the log is not indexed yet. Or another 503, as for every call.",
                IndexBehind,
            ),
        },
    )
    async def history(identifier: str) -> dict[str, Any]:
        """Return every event that touched an input, a run or a batch, in log order, and what each event changed."""
        answer: dict[str, Any] = msgspec.to_builtins(await get_historian().history(identifier))
        return answer
