"""Pauses: of a workflow that Extend refuses or a person stopped, and of a submission. Said, then kept."""

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

_sql = beside(__file__, "queue.sql")

Kind = Literal["workflow", "submission"]


class Pause(NamedTuple):
    """What is paused."""

    kind: Kind
    id: str


class Said(NamedTuple):
    """The newest word of the log on a pause."""

    at: datetime
    event_id: str
    paused: bool
    reason: str
    by: str | None


PauseEvent = events.WorkflowPaused | events.WorkflowResumed | events.SubmissionPaused | events.SubmissionResumed


async def pause(connection: Any, log: Log, what: Pause, reason: str, by: str | None) -> bool:
    """Pause it; False where it was paused already. To be called in a transaction."""
    if await connection.fetchval(_sql["is_paused"], *what) is not None:
        return False
    event = (
        events.WorkflowPaused(what.id, reason, by)
        if what.kind == "workflow"
        else events.SubmissionPaused(what.id, reason, by)
    )
    at = await _say(log, what, event)
    await connection.execute(_sql["pause"], *what, reason, by, at)
    return True


def standing(waits_for: Mapping[str, int]) -> dict[str, int]:
    """Return how the inputs without a result stand, from their numbers by what they wait for. Pure."""

    def count(*kinds: str) -> int:
        return sum(waits_for.get(kind, 0) for kind in kinds)

    will_be_sent = count("queued", "retry", "unannounced")
    return {
        "waiting": will_be_sent + count("workflow_paused", "submission_paused", "secrets_removed"),
        "will_be_sent": will_be_sent,
        "calling": count("calling"),
        "in_doubt": count("in_doubt", "sweeps", "held"),
    }


def blocked(what: Pause, reason: str) -> str:
    """Return the reason of a pause for what Extend answered: what happened, and what a person can do. Pure."""
    if what.kind == "submission":
        return (
            f"Extend answered {reason}. Only this submission is paused; nothing was refused: its inputs wait. Submit "
            "the rows again with a version that exists (--workflow-version), or, once Extend has this version, run: "
            f"everyrun submission resume {what.id} --reason WHY"
        )
    return (
        f"Extend answered {reason}. Nothing was refused: the inputs wait. Once the workflow, the key, the credits or "
        f"the permission is put right, run: everyrun workflow resume {what.id} --reason WHY"
    )


async def pause_blocked(connection: Any, log: Log, what: Pause, reason: str) -> bool:
    """Pause it for what Extend answered; False if it was paused already. To be called in a transaction."""
    return await pause(connection, log, what, blocked(what, reason), None)


async def resume(connection: Any, log: Log, what: Pause, reason: str, by: str | None) -> bool:
    """Resume it; False where it was not paused. To be called in a transaction."""
    if await connection.fetchval(_sql["is_paused"], *what) is None:
        return False
    event = (
        events.WorkflowResumed(what.id, reason, by)
        if what.kind == "workflow"
        else events.SubmissionResumed(what.id, reason, by)
    )
    await _say(log, what, event)
    await connection.execute(_sql["resume"], *what)
    return True


async def _say(log: Log, what: Pause, event: PauseEvent) -> datetime:
    at = datetime.now(UTC)
    said = timestamp(at)
    identifier = f"{what.id}/{event_type(event)}/{said}/{digest(event.reason, event.by or '')}"
    await log.append([record("batches", event, key=what.id, id=identifier, source=SOURCE, time=said)])
    return at


def newest(
    found: Iterable[tuple[msgspec.Struct, datetime, str]], best: dict[Pause, Said] | None = None
) -> dict[Pause, Said]:
    """The newest word on each pause among events of the log, each with its time and id, and ``best``, read before.

    Events of other things are passed over.
    """
    best = {} if best is None else best
    for event, at, event_id in found:
        what: Pause
        if isinstance(event, events.WorkflowPaused | events.WorkflowResumed):
            what = Pause("workflow", event.workflow_id)
        elif isinstance(event, events.SubmissionPaused | events.SubmissionResumed):
            what = Pause("submission", event.submission_id)
        else:
            continue
        paused = isinstance(event, events.WorkflowPaused | events.SubmissionPaused)
        said = Said(at, event_id, paused, event.reason, event.by)
        if what not in best or said[:2] > best[what][:2]:
            best[what] = said
    return best
