"""Pause and resume workflows and submissions: publish the event, then store the change.

A person can pause a workflow or a submission. Everyrun pauses a workflow or a submission when Extend blocks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from everyrun.log import events
from everyrun.log.cloudevents import event_type, record, timestamp
from everyrun.log.producer import Log
from everyrun.store.sql import beside
from everyrun.submission.dispatch.event_records import SOURCE, digest

_sql = beside(__file__, "decisions.sql")


class PauseTarget(NamedTuple):
    """A workflow or a submission that can be paused."""

    kind: Literal["workflow", "submission"]
    id: str


class LoggedPause(NamedTuple):
    """The newest event in the log that paused or resumed a workflow or a submission."""

    at: datetime
    event_id: str
    paused: bool
    reason: str
    by: str | None


PauseEvent = events.WorkflowPaused | events.WorkflowResumed | events.SubmissionPaused | events.SubmissionResumed


async def pause(connection: Any, log: Log, target: PauseTarget, reason: str, by: str | None) -> bool:
    """Pause the target; return False if it was paused already.

    ``by`` is None if Everyrun pauses the target. Must be called in a transaction.
    """
    if await connection.fetchval(_sql["is_paused"], *target) is not None:
        return False
    event = (
        events.WorkflowPaused(target.id, reason, by)
        if target.kind == "workflow"
        else events.SubmissionPaused(target.id, reason, by)
    )
    at = await _publish(log, target, event)
    await connection.execute(_sql["pause"], *target, reason, by, at)
    return True


def blocked(target: PauseTarget, reason: str) -> str:
    """Return the reason to show for a pause after Extend blocked the target: Extend's answer, and what to do. Pure."""
    if target.kind == "submission":
        return (
            f"Extend answered {reason}. Only this submission is paused. No input was refused: the inputs wait in the "
            "queue. Submit the rows again with a version that exists (--workflow-version). Or create this version at "
            "Extend, then run: "
            f"everyrun submission resume {target.id} --reason WHY"
        )
    return (
        f"Extend answered {reason}. No input was refused: the inputs wait in the queue. Fix the cause, which is the "
        "workflow, the API key, the credits or a permission. Then run: "
        f"everyrun workflow resume {target.id} --reason WHY"
    )


async def pause_blocked(connection: Any, log: Log, target: PauseTarget, reason: str, *, objects: bool = False) -> bool:
    """Pause a workflow or submission that cannot be sent before a person acts; return False if it was paused already.

    If ``objects`` is true, the cause is not an answer of Extend, but objects that Everyrun cannot read. Must be called
    in a transaction.
    """
    why = unreadable_objects(target, reason) if objects else blocked(target, reason)
    return await pause(connection, log, target, why, None)


def unreadable_objects(target: PauseTarget, reason: str) -> str:
    """Return the reason to show for a pause after Everyrun could not read the objects of a submission. Pure."""
    return (
        f"Everyrun cannot read the objects in a bucket: {reason}. No input was refused: the inputs wait in the queue. "
        "Give the submission service credentials that can read the bucket (docs/how-to/sources.md). Then run: "
        f"everyrun submission resume {target.id} --reason WHY"
    )


async def resume(connection: Any, log: Log, target: PauseTarget, reason: str, by: str | None) -> bool:
    """Resume the target; return False if it was not paused. Must be called in a transaction."""
    if await connection.fetchval(_sql["is_paused"], *target) is None:
        return False
    event = (
        events.WorkflowResumed(target.id, reason, by)
        if target.kind == "workflow"
        else events.SubmissionResumed(target.id, reason, by)
    )
    await _publish(log, target, event)
    await connection.execute(_sql["resume"], *target)
    return True


async def _publish(log: Log, target: PauseTarget, event: PauseEvent) -> datetime:
    at = datetime.now(UTC)
    time = timestamp(at)
    identifier = f"{target.id}/{event_type(event)}/{time}/{digest(event.reason, event.by or '')}"
    await log.append([record("batches", event, key=target.id, id=identifier, source=SOURCE, time=time)])
    return at


async def store(connection: Any, target: PauseTarget, logged: LoggedPause) -> None:
    """Store a pause or a resume whose event is in the log already."""
    if logged.paused:
        await connection.execute(_sql["pause"], *target, logged.reason, logged.by, logged.at)
    else:
        await connection.execute(_sql["resume"], *target)


def newest_pauses(
    found: Iterable[tuple[msgspec.Struct, datetime, str]], newest: dict[PauseTarget, LoggedPause] | None = None
) -> dict[PauseTarget, LoggedPause]:
    """Add the pauses and resumes in ``found`` to ``newest``, and return ``newest``.

    ``found`` contains events of the log, each with its time and its id. For each target only the newest event is kept.
    Events of other types are skipped.
    """
    newest = {} if newest is None else newest
    for event, at, event_id in found:
        target: PauseTarget
        if isinstance(event, events.WorkflowPaused | events.WorkflowResumed):
            target = PauseTarget("workflow", event.workflow_id)
        elif isinstance(event, events.SubmissionPaused | events.SubmissionResumed):
            target = PauseTarget("submission", event.submission_id)
        else:
            continue
        paused = isinstance(event, events.WorkflowPaused | events.SubmissionPaused)
        logged = LoggedPause(at, event_id, paused, event.reason, event.by)
        if target not in newest or logged[:2] > newest[target][:2]:
            newest[target] = logged
    return newest


def pause_counts(waits_for: Mapping[str, int]) -> dict[str, int]:
    """Return how many of the inputs without a result are waiting, how many are in a call, how many are in doubt. Pure.

    ``waits_for`` has the number of inputs for each cause of waiting.
    """

    def count(*kinds: str) -> int:
        return sum(waits_for.get(kind, 0) for kind in kinds)

    will_be_sent = count("queued", "sending_window", "retry", "unannounced")
    return {
        "waiting": will_be_sent + count("workflow_paused", "submission_paused", "secrets_removed"),
        "will_be_sent": will_be_sent,
        "calling": count("calling"),
        "in_doubt": count("in_doubt", "sweeps", "held"),
    }
