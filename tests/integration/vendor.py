"""A fake Extend in the test's process: lists and runs, with a record of every request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx


def text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Vendor:
    """Answers as Extend does; ``ahead`` is by how much its clock is ahead of ours, ``most`` its largest page."""

    def __init__(self, workflow: str, *, ahead: float = 0.0, most: int = 1000) -> None:
        self.workflow = workflow
        self.ahead = timedelta(seconds=ahead)
        self.most = most
        self.runs: dict[str, dict[str, Any]] = {}
        self.lists: list[dict[str, str]] = []
        self.gets: list[str] = []
        #: Runs that are listed but cannot be fetched, with the status of the response instead.
        self.deleted: set[str] = set()
        self.refused: dict[str, int] = {}

    def run(
        self, run_id: str, status: str, batch_id: str | None, *, ago: float = 0.0, made: float | None = None
    ) -> None:
        """Add a run that reached its status ``ago`` seconds ago."""
        now = datetime.now(UTC) + self.ahead
        changed = now - timedelta(seconds=ago)
        ended = changed if status not in ("PENDING", "PROCESSING") else None
        times = {"createdAt": text(changed), "updatedAt": text(changed), "endTime": text(ended), "reviewedAt": None}
        self.runs[run_id] = {"id": run_id, "status": status, "batchId": batch_id, **times}

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The transport's handler."""
        headers = {"date": format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)}
        run_id = request.url.path.removeprefix("/workflow_runs").strip("/")
        if run_id:
            self.gets.append(run_id)
            status = self.refused.get(run_id, 404 if run_id in self.deleted or run_id not in self.runs else 200)
            body = {**self.runs.get(run_id, {}), "object": "workflow_run", "metadata": {}}
            return httpx.Response(status, json=body, headers=headers)
        query = dict(request.url.params)
        self.lists.append(query)
        if int(query["maxPageSize"]) > self.most:
            return httpx.Response(400, json={"code": "INVALID_REQUEST", "message": "maxPageSize"}, headers=headers)
        found = [r for r in self.runs.values() if query.get("batchId") in (None, r["batchId"])]
        found.sort(key=lambda run: run[query["sortBy"]], reverse=query["sortDir"] == "desc")
        start, size = int(query.get("nextPageToken", 0)), int(query["maxPageSize"])
        page: dict[str, Any] = {"data": found[start : start + size]}
        if start + size < len(found):
            page["nextPageToken"] = str(start + size)
        return httpx.Response(200, json=page, headers=headers)
