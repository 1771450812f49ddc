"""A person's decisions on chunks whose outcome is unknown, and what they need to know to make them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import EveryrunError
from everyrun.extend import reserved
from everyrun.extend.client import Extend, ExtendError
from everyrun.store.sql import beside
from everyrun.submission.dispatch.protocol import Adopted, Decision, Discarded, NotPossibleError, Resent
from everyrun.submission.dispatch.resolver import SWEEPS
from everyrun.submission.dispatch.transitions import Transitions
from everyrun.submission.recovery.queue_recovery import Level

_sql = beside(__file__, "queue.sql")

#: Seconds that Extend is asked for, when a person waits.
_WITHIN = 20.0


class DecisionError(EveryrunError):
    """The decision cannot be taken; ``status`` and ``code`` are the API's, the text says why and what can be done."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def waits_for(doubt: Mapping[str, Any], now: datetime) -> str:
    """What a chunk in doubt or held waits for, as a sentence. Pure."""
    if doubt["state"] == "held" and doubt["files_lost"]:
        key = doubt["idempotency_key"]
        return f"the same upload, repeated with the Idempotency-Key {key}; or a person's decision: adopt or discard"
    if doubt["state"] == "held":
        return "a person's decision: " + " or ".join(can(doubt, now))
    if doubt["state"] != "in_doubt":
        return "nothing: it is not in doubt"
    ends = doubt["window_ends"]
    if now < ends:
        return f"evidence, until {ends:%Y-%m-%d %H:%M:%S} UTC"
    if doubt["sweeps"] < SWEEPS:
        return f"complete sweeps of the workflow begun after the window: {doubt['sweeps']} of {SWEEPS}"
    return "the tables to have applied all of the log"


def window_is_over(doubt: Mapping[str, Any], now: datetime) -> bool:
    """Whether evidence that can come would have come. Pure."""
    return bool(now >= doubt["window_ends"] and doubt["sweeps"] >= SWEEPS)


class Doubts:
    """Lists, shows and decides."""

    def __init__(
        self, pool: asyncpg.Pool, extend: Extend, level: Level, transitions: Transitions, installation: str
    ) -> None:
        self._pool = pool
        self._extend = extend
        self._level = level
        self._transitions = transitions
        self._installation = installation

    async def page(
        self, submission_id: str | None, state: str | None, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """Chunks in doubt or held, by chunk."""
        rows = await self._pool.fetch(_sql["doubts"], None, submission_id, state, after, limit)
        return [_shown(row) for row in rows]

    async def show(self, chunk: str) -> dict[str, Any]:
        """One chunk in any state: its attempts, the runs that name it, the decisions taken. Raises DecisionError."""
        row = await self._row(chunk)
        attempts = await self._pool.fetch(_sql["attempts_of"], chunk)
        runs = await self._pool.fetch(_sql["runs_naming"], chunk)
        decisions = await self._pool.fetch(_sql["decisions_of"], chunk)
        return {
            **_shown(row),
            "attempts": [_plain(found) for found in attempts],
            "evidence": [_plain(found) for found in runs],
            "decisions": [_plain(found) for found in decisions],
        }

    async def adopt(self, chunk: str, batch_id: str, by: str, why: str) -> None:
        """The chunk became this batch: a run of it must name the chunk. Raises DecisionError."""
        await self._level.check()
        row = await self._row(chunk)
        known: Any = await self._pool.fetchrow(_sql["batch_known"], batch_id)
        if known is not None:
            whose = f"attempt {known['attempt']} of chunk {known['chunk']}" if known["attempt"] else known["chunk"]
            raise DecisionError(409, "BATCH_KNOWN", f"{batch_id} is known already: it is {whose}")
        run_id, key = await self._a_run_of(batch_id)
        if key is None:
            raise DecisionError(
                409,
                "NOT_OURS",
                f"run {run_id} of {batch_id} carries no key of Everyrun's: somebody else submitted that batch. "
                "To account for it, register it: everyrun register",
            )
        if (key.installation, key.chunk) != (self._installation, chunk):
            ours = "" if key.installation == self._installation else " of another installation"
            raise DecisionError(
                409, "OTHER_CHUNK", f"{batch_id} is not this chunk's: its run {run_id} names {key.chunk}{ours}"
            )
        if key.attempt > row["attempt"]:
            raise DecisionError(
                409, "OTHER_CHUNK", f"its run {run_id} names attempt {key.attempt}; the queue knows {row['attempt']}"
            )
        await self._decide(chunk, Adopted(key.attempt, batch_id, run_id, by, why))
        await self._pool.execute(_sql["adopted"], chunk, key.attempt, batch_id)

    async def resend(self, chunk: str, by: str, why: str, *, force: bool) -> None:
        """Send the chunk again.

        Raises DecisionError, also where its window is open and it is not forced, or its files were lost.
        """
        row = await self._row(chunk)
        if row["files_lost"]:
            raise DecisionError(
                409,
                "FILES_LOST",
                "the queue was restored from a backup that does not have this chunk's files. Repeat the upload with "
                f"the Idempotency-Key {row['idempotency_key']}, which brings them back; or discard the chunk",
            )
        await self._closed(chunk, force, "sent again now, it may be taken twice")
        await self._decide(chunk, Resent(by, why))

    async def discard(self, chunk: str, by: str, why: str, *, force: bool) -> None:
        """Do not send the chunk again: its inputs are REFUSED. Raises DecisionError, as for resend."""
        await self._closed(chunk, force, "its runs may be at work already")
        await self._decide(chunk, Discarded(by, why))

    async def _row(self, chunk: str) -> Any:
        row = await self._pool.fetchrow(_sql["doubts"], chunk, None, None, None, 1)
        if row is None:
            raise DecisionError(404, "NOT_FOUND", f"there is no chunk {chunk}")
        return row

    async def _closed(self, chunk: str, force: bool, danger: str) -> None:
        await self._level.check()
        row = await self._row(chunk)
        if row["state"] not in ("in_doubt", "held"):
            raise DecisionError(409, "NOT_IN_DOUBT", f"the chunk is {row['state']}: there is nothing to decide")
        if not force and not window_is_over(row, row["now"]):
            raise DecisionError(
                409,
                "WINDOW_OPEN",
                f"evidence may still come (the window ends {row['window_ends']:%Y-%m-%d %H:%M:%S} UTC, and "
                f"{row['sweeps']} of {SWEEPS} sweeps after it are complete); {danger}. Wait, or use force",
            )

    async def _decide(self, chunk: str, decision: Decision) -> None:
        try:
            await self._transitions.take(chunk, decision)
        except NotPossibleError as error:
            raise DecisionError(409, "NOT_IN_DOUBT", f"it is not in doubt any more: {error}") from None

    async def _a_run_of(self, batch_id: str) -> tuple[str, reserved.Reserved | None]:
        try:
            listed = await self._extend.list_runs(within=_WITHIN, batchId=batch_id, maxPageSize=1)
            found = next((run["id"] for run in listed.data if isinstance(run, dict) and "id" in run), None)
            if found is None:
                message = f"Extend lists no run of {batch_id}: is the id right? A new batch may not be listed yet"
                raise DecisionError(409, "NO_RUNS", message)
            run = msgspec.json.decode(await self._extend.get_run(str(found), within=_WITHIN))
        except ExtendError as error:
            raise DecisionError(502, "EXTEND", f"Extend could not be asked about {batch_id}: {error}") from None
        if run.get("batchId") != batch_id:
            raise DecisionError(409, "NO_RUNS", f"Extend's run {found} is not of {batch_id}")
        return str(found), reserved.read(run.get("metadata"))


def _shown(row: Any) -> dict[str, Any]:
    decidable = row["state"] in ("in_doubt", "held")
    return {
        **{name: _text(row[name]) for name in ("chunk", "submission_id", "workflow_id", "state", "inputs", "attempt")},
        **{name: _text(row[name]) for name in ("resends", "reason", "batch_id", "runs")},
        "window_ends": _text(row["window_ends"]) if decidable else None,
        "window_is_over": window_is_over(row, row["now"]) if decidable else None,
        "waits_for": waits_for(row, row["now"]),
        "can": can(row, row["now"]) if decidable else [],
        "with_force": with_force(row, row["now"]) if decidable else [],
    }


def can(doubt: Mapping[str, Any], now: datetime) -> list[str]:
    """Return the decisions that are possible now. Pure."""
    if not window_is_over(doubt, now):
        return ["adopt"]
    return ["adopt", "discard"] if doubt["files_lost"] else ["adopt", "resend", "discard"]


def with_force(doubt: Mapping[str, Any], now: datetime) -> list[str]:
    """Return the decisions that only force makes possible now: evidence could still contradict them. Pure."""
    if window_is_over(doubt, now):
        return []
    return ["discard"] if doubt["files_lost"] else ["resend", "discard"]


def _plain(row: Any) -> dict[str, Any]:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
