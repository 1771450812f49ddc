"""Read runs and batches from the result tables and the queue, for the drop-in endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from everyrun.store.sql import beside
from everyrun.submission.dropin.extend_form import Problem, submission_of
from everyrun.submission.dropin.listing import InTables, ListQuery, summary

_sql = beside(__file__, "runs.sql")

#: Statuses that Extend reports by a webhook (docs.extend.ai, webhooks/events). The tables learn the other statuses only
#: from polls, so a run with another status may have changed since.
TOLD = frozenset({"PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEEDS_REVIEW"})


class KnownRun(NamedTuple):
    """A run that the tables have. ``batch_id`` is the batchId as the caller knows it."""

    run: str
    batch_id: str | None


class Part(NamedTuple):
    """A batch at Extend. ``submitted_at`` is None if its event is still on its way to the tables."""

    batch_id: str
    submitted_at: datetime | None
    #: True if the tables have a run of every input, with a status of TOLD.
    told: bool


class KnownBatch(NamedTuple):
    """Describes what a batchId names. ``whole`` is True for a submission, and False for a single batch at Extend."""

    submission_id: str
    workflow_id: str
    whole: bool
    parts: tuple[Part, ...]
    #: True if nothing of it is still to be sent or in doubt.
    sent: bool

    @property
    def told(self) -> bool:
        """True if the tables have all its runs, so that Extend need not be asked."""
        return self.sent and all(part.told for part in self.parts)


class Runs:
    """Reads the tables. The methods raise asyncpg's errors."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, run_id: str) -> KnownRun | None:
        """Return a run whose whole content is in the tables, if its status is one of TOLD."""
        row = await self._pool.fetchrow(_sql["run"], run_id)
        if row is None or row["trimmed"] or row["status"] not in TOLD or '"stepRuns": []' in row["run"]:
            # If a run is too large for the log, the log keeps it without its steps.
            return None
        return KnownRun(row["run"], row["batch_id"])

    async def find_batch(self, batch_id: str) -> KnownBatch | None:
        """Return what a batchId names, or None if Everyrun does not know it."""
        rows = await self._pool.fetch(_sql["batch"], batch_id, submission_of(batch_id))
        if not rows:
            return None
        parts = [Part(row["batch_id"], row["submitted_at"], row["told"]) for row in rows if row["state"] == "submitted"]
        return KnownBatch(
            rows[0]["submission_id"],
            rows[0]["workflow_id"],
            rows[0]["whole"],
            tuple(parts),
            all(row["state"] in ("submitted", "refused", "cancelled") for row in rows),
        )

    async def page(self, batch: KnownBatch, query: ListQuery) -> tuple[list[dict[str, Any]], str | None]:
        """Return a page of the summaries of a batch that is ``told``, and the token of the next page."""
        if query.workflow_id not in (None, batch.workflow_id):
            return [], None
        after = query.at if isinstance(query.at, InTables) else None
        arguments = [
            [part.batch_id for part in batch.parts],
            [part.submitted_at for part in batch.parts],
            query.status,
            query.name_contains,
            query.size + 1,
            not batch.whole,
        ]
        run_id = after.run_id if after else None
        if query.sort_by == "updatedAt" and query.descending:
            moment = _moment(after.moment) if after else None
            rows = await self._pool.fetch(_sql["newest"], *arguments, moment, run_id)
        else:
            text = after.moment if after else None
            rows = await self._pool.fetch(_sql["sorted"], *arguments, text, run_id, query.sort_by, query.descending)
        shown = [
            summary(row["run"], query.batch_id, row["submitted_at"], row["observed_at"]) for row in rows[: query.size]
        ]
        last = rows[query.size - 1] if len(rows) > query.size else None
        return shown, None if last is None else query.token(InTables(_text(last["moment"]), last["run_id"]))

    async def known_as(self, batch_ids: Sequence[str]) -> dict[str, str]:
        """Return the batchIds under which callers know batches at Extend, where these differ."""
        if not batch_ids:
            return {}
        rows = await self._pool.fetch(_sql["known_as"], list(set(batch_ids)))
        return {row["batch_id"]: row["known_as"] for row in rows}

    async def has(self, run_id: str) -> bool:
        """Return True if the tables have the run in any state."""
        return bool(await self._pool.fetchval(_sql["is_ours"], run_id))

    async def save_deleted(self, run_id: str, by: str) -> None:
        """Show the run no longer, because a caller deleted it at Extend."""
        await self._pool.execute(_sql["save_deleted"], run_id, by)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Problem(400, "nextPageToken: is not valid") from None


def _text(moment: datetime | str) -> str:
    return moment if isinstance(moment, str) else moment.isoformat()
