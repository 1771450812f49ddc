"""Name the events that a receiver can subscribe to, and check a subscription. Pure.

A receiver gets events in one of two formats. The format ``extend`` is Extend's own: an existing webhook consumer reads
it with Extend's SDK. The format ``everyrun`` has Everyrun's own events, as the specification Standard Webhooks says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from everyrun.http import InvalidFieldError

Format = Literal["extend", "everyrun"]

#: Extend's event for each status of a run that has one (SDK 1.20.0, types/webhook_event.py). Its sixth run event,
#: ``workflow_run.step_run.processed``, is not among them: Everyrun drops it, because it describes a step, not a run.
OF_STATUS = {
    "PROCESSED": "workflow_run.completed",
    "FAILED": "workflow_run.failed",
    "NEEDS_REVIEW": "workflow_run.needs_review",
    "REJECTED": "workflow_run.rejected",
    "CANCELLED": "workflow_run.cancelled",
}

#: The type of the event in the log for each of Everyrun's own events.
OF_EVERYRUN = {
    "submission-settled": "submission-settled",
    "batch-in-doubt": "batch-in-doubt",
    "workflow-paused": "workflow-paused",
    "quarantined": "message-quarantined",
}

#: The event that ``everyrun notify test`` sends. No receiver can subscribe to it.
TEST_EVENT = "everyrun.test"

EVENTS: dict[Format, tuple[str, ...]] = {"extend": tuple(OF_STATUS.values()), "everyrun": tuple(OF_EVERYRUN)}


class Subscription(NamedTuple):
    """The format of a receiver, and the events that it gets."""

    format: Format
    events: list[str]


def subscription(wanted: Iterable[str]) -> Subscription:
    """Return the subscription for names and patterns (``workflow_run.*``) of events.

    Raises InvalidFieldError if a name or pattern matches no event, or if the events are of both formats: an address
    that gets both could not tell how to verify a request.
    """
    chosen: dict[str, Format] = {}
    for pattern in wanted:
        matched = [(name, format) for format, names in EVENTS.items() for name in names if fnmatchcase(name, pattern)]
        if not matched:
            known = ", ".join(name for names in EVENTS.values() for name in names)
            raise InvalidFieldError("events", f"there is no event {pattern[:100]!r}; there are: {known}")
        chosen.update(matched)
    if not chosen:
        raise InvalidFieldError("events", "is empty; name at least one event")
    formats = set(chosen.values())
    if len(formats) > 1:
        message = "has events of Extend and of Everyrun, which are signed differently; add one receiver for each kind"
        raise InvalidFieldError("events", message)
    (format,) = formats
    return Subscription(format, [name for name in EVENTS[format] if name in chosen])


def is_wanted(event: str, workflow_id: str | None, events: Sequence[str], workflows: Sequence[str]) -> bool:
    """Return True if a receiver of these events and workflows gets the event. No workflows stand for all workflows."""
    # Extend may add run events. A receiver of all of Extend's events gets these too.
    known = event in events or (event.startswith("workflow_run.") and set(EVENTS["extend"]) <= set(events))
    return known and (not workflows or workflow_id in workflows)
