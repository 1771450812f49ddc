"""Show chunks whose outcome is unknown, and apply people's decisions about them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from everyrun.errors import EveryrunError
from everyrun.extend import reserved
from everyrun.extend.client import Extend, ExtendError
from everyrun.store.sql import Row, beside
from everyrun.submission.dispatch.protocol import Adopted, Discarded, DoubtDecision, NotPossibleError, Resent
from everyrun.submission.dispatch.resolver import REQUIRED_SWEEPS, mark_adopted
from everyrun.submission.dispatch.transitions import Transitions
from everyrun.submission.recovery.queue_recovery import QueueRecovery

_sql = beside(__file__, "decisions.sql")

#: Timeout of each call to Extend, in seconds. A person waits for the answer.
_TIMEOUT = 20.0


class DecisionError(EveryrunError):
    """The decision is not possible.

    ``status`` and ``code`` are those of the HTTP answer; the text says why, and what to do.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def waits_for(doubt: Row, now: datetime) -> str:
    """Return in words what a chunk in doubt or held is waiting for. Pure."""
    if doubt["state"] == "held" and doubt["files_lost"]:
        key = doubt["idempotency_key"]
        return f"the same upload, repeated with the Idempotency-Key {key}; or a person's decision: adopt or discard"
    if doubt["state"] == "held":
        return "a person's decision: " + " or ".join(possible_decisions(doubt, now))
    if doubt["state"] == "sending":
        return "the end of its call; if its worker died, the chunk will be in doubt after the maximum time of a call"
    if doubt["state"] != "in_doubt":
        return "nothing: the chunk is not in doubt"
    ends = doubt["window_ends"]
    if now < ends:
        return f"evidence, until {ends:%Y-%m-%d %H:%M:%S} UTC"
    if doubt["sweeps"] < REQUIRED_SWEEPS:
        return f"complete sweeps, begun after the window ended: {doubt['sweeps']} of {REQUIRED_SWEEPS}"
    return "the processor, which has not applied the whole log to the result tables yet"


def window_is_over(doubt: Row, now: datetime) -> bool:
    """Return True if the window for evidence is over, and enough sweeps that began after it are complete. Pure."""
    return bool(now >= doubt["window_ends"] and doubt["sweeps"] >= REQUIRED_SWEEPS)


def possible_decisions(doubt: Row, now: datetime) -> list[str]:
    """Return the decisions that are possible now without ``force``. Pure."""
    if not window_is_over(doubt, now):
        return ["adopt"]
    return ["adopt", "discard"] if _cannot_be_sent(doubt) else ["adopt", "resend", "discard"]


def forced_decisions(doubt: Row, now: datetime) -> list[str]:
    """Return the decisions that now need ``force``, because evidence could still contradict them. Pure."""
    if window_is_over(doubt, now):
        return []
    return ["discard"] if _cannot_be_sent(doubt) else ["resend", "discard"]


def _cannot_be_sent(doubt: Row) -> bool:
    return doubt["files_lost"] or doubt["cancellation"] is not None


class Doubts:
    """List and show chunks in doubt or held, and apply people's decisions about them."""

    def __init__(
        self, pool: asyncpg.Pool, extend: Extend, recovery: QueueRecovery, transitions: Transitions, installation: str
    ) -> None:
        self._pool = pool
        self._extend = extend
        self._recovery = recovery
        self._transitions = transitions
        self._installation = installation

    async def page(
        self, submission_id: str | None, state: str | None, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """Return a page of the chunks in doubt or held, sorted by id."""
        rows = await self._pool.fetch(_sql["doubts"], None, submission_id, state, after, limit)
        return [_shown(row) for row in rows]

    async def show(self, chunk: str) -> dict[str, Any]:
        """Return a chunk in any state, with its attempts, the runs that name it, and the decisions about it.

        Raises DecisionError if there is no such chunk.
        """
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
        """Decide that the chunk became this batch.

        A run of the batch must name the chunk in its reserved key. Raises DecisionError.
        """
        await self._recovery.ensure_caught_up()
        row = await self._row(chunk)
        known: Any = await self._pool.fetchrow(_sql["batch_known"], batch_id)
        if known is not None:
            owner = f"attempt {known['attempt']} of chunk {known['chunk']}" if known["attempt"] else known["chunk"]
            raise DecisionError(409, "BATCH_KNOWN", f"{batch_id} is known already: it is {owner}")
        run_id, key = await self._first_run(batch_id)
        if key is None:
            raise DecisionError(
                409,
                "NOT_OURS",
                f"run {run_id} of {batch_id} has no reserved key of Everyrun, so another caller sent that batch. "
                "To account for it, register it: everyrun register",
            )
        if (key.installation, key.chunk) != (self._installation, chunk):
            ours = "" if key.installation == self._installation else " of another installation"
            raise DecisionError(
                409, "OTHER_CHUNK", f"{batch_id} belongs to another chunk: its run {run_id} names {key.chunk}{ours}"
            )
        if key.attempt > row["attempt"]:
            raise DecisionError(
                409,
                "OTHER_CHUNK",
                f"run {run_id} of {batch_id} names attempt {key.attempt} of this chunk, but the queue knows only the "
                f"attempts up to {row['attempt']}",
            )
        await self._decide(chunk, Adopted(key.attempt, batch_id, run_id, by, why))
        await mark_adopted(self._pool, chunk, key.attempt, batch_id)

    async def resend(self, chunk: str, by: str, why: str, *, force: bool) -> None:
        """Resend the chunk.

        Raises DecisionError if the chunk is not in doubt or held, if its files are lost, if its inputs were cancelled,
        or if evidence may still come and ``force`` is not set.
        """
        row = await self._row(chunk)
        if row["files_lost"]:
            raise DecisionError(
                409,
                "FILES_LOST",
                "the queue was restored from a backup without this chunk's files. Repeat the upload with the "
                f"Idempotency-Key {row['idempotency_key']} to restore them, or discard the chunk",
            )
        if row["cancellation"] is not None:
            message = "a person cancelled the chunk's inputs, so they are not sent again. You can adopt or discard it"
            raise DecisionError(409, "CANCELLED", message)
        await self._require_decidable(chunk, force, "if you resend it now, Extend may process it twice")
        await self._decide(chunk, Resent(by, why))

    async def discard(self, chunk: str, by: str, why: str, *, force: bool) -> None:
        """Never resend the chunk: its inputs become REFUSED.

        Raises DecisionError if the chunk is not in doubt or held, or if evidence may still come and ``force`` is not
        set.
        """
        await self._require_decidable(chunk, force, "Extend may be processing it already")
        await self._decide(chunk, Discarded(by, why))

    async def _row(self, chunk: str) -> Row:
        row = await self._pool.fetchrow(_sql["doubts"], chunk, None, None, None, 1)
        if row is None:
            raise DecisionError(404, "NOT_FOUND", f"there is no chunk {chunk}")
        return row

    async def _require_decidable(self, chunk: str, force: bool, risk: str) -> None:
        await self._recovery.ensure_caught_up()
        row = await self._row(chunk)
        if row["state"] not in ("in_doubt", "held"):
            raise DecisionError(409, "NOT_IN_DOUBT", f"the chunk is {row['state']}: there is nothing to decide")
        if not force and not window_is_over(row, row["now"]):
            raise DecisionError(
                409,
                "WINDOW_OPEN",
                f"evidence may still come (the window ends {row['window_ends']:%Y-%m-%d %H:%M:%S} UTC, and "
                f"{row['sweeps']} of {REQUIRED_SWEEPS} sweeps after it are complete); {risk}. Wait, or decide "
                "with --force (over HTTP: force)",
            )

    async def _decide(self, chunk: str, decision: DoubtDecision) -> None:
        try:
            await self._transitions.apply(chunk, decision)
        except NotPossibleError as error:
            raise DecisionError(409, "NOT_IN_DOUBT", f"the chunk is no longer in doubt: {error}") from None

    async def _first_run(self, batch_id: str) -> tuple[str, reserved.Reserved | None]:
        """Return the id of a run of the batch, and the reserved key of this run (None if the run has none).

        Raises DecisionError.
        """
        try:
            listed = await self._extend.list_runs(within=_TIMEOUT, batchId=batch_id, maxPageSize=1)
            run_id = next((run["id"] for run in listed.data if isinstance(run, dict) and "id" in run), None)
            if run_id is None:
                message = f"Extend lists no run of {batch_id}. Check the id; a new batch may not be listed yet"
                raise DecisionError(409, "NO_RUNS", message)
            run = msgspec.json.decode(await self._extend.get_run(str(run_id), within=_TIMEOUT))
        except ExtendError as error:
            raise DecisionError(502, "EXTEND", f"Extend could not be asked about {batch_id}: {error}") from None
        if run.get("batchId") != batch_id:
            raise DecisionError(409, "NO_RUNS", f"Extend's run {run_id} does not belong to {batch_id}")
        return str(run_id), reserved.read(run.get("metadata"))


def _shown(row: Row) -> dict[str, Any]:
    decidable = row["state"] in ("in_doubt", "held")
    names = (
        "chunk",
        "submission_id",
        "workflow_id",
        "state",
        "inputs",
        "attempt",
        "resends",
        "reason",
        "batch_id",
        "runs",
    )
    return {
        **{name: _text(row[name]) for name in names},
        "window_ends": _text(row["window_ends"]) if decidable else None,
        "window_is_over": window_is_over(row, row["now"]) if decidable else None,
        "waits_for": waits_for(row, row["now"]),
        "can": possible_decisions(row, row["now"]) if decidable else [],
        "with_force": forced_decisions(row, row["now"]) if decidable else [],
    }


def _plain(row: Any) -> dict[str, Any]:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
