"""Judge whether the tables follow the log, workflows are swept, and no input waits too long. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from everyrun.doctor.facts import Following, Late, ReceiverFacts, Swept
from everyrun.doctor.findings import Finding, failed, not_checked, ok, warning

FOLLOWING, SWEEPS, WAITING = "tables follow the log", "sweeps", "inputs that wait"
RECEIVERS = "receivers"
#: A receiver of notifications gets a warning if all requests to it have failed for this many seconds.
_RECEIVER_FAILS = 3600.0
#: Sweeps of a workflow are late if the last complete one was longer ago than this many times EVERYRUN_SWEEP_EVERY, and
#: also longer ago than this many seconds.
_INTERVALS, _AT_LEAST = 4.0, 600.0


def judge_following(facts: Following) -> Finding:
    """Judge whether the result tables have applied every record of the log, or are at least catching up."""
    if facts.problem is not None:
        return not_checked(FOLLOWING, f"Kafka and Postgres ({facts.problem})")
    if not facts.behind:
        return ok(FOLLOWING, "every record is applied")
    if facts.moved:
        return ok(FOLLOWING, f"{facts.behind} records were still to be applied, and the processor applies them")
    found = f"{facts.behind} records are not applied, and none was applied for {facts.seconds:.0f} s"
    remedy = "Start a processor (python -m everyrun.processor). If one runs, see its readyz and log, and restart it."
    return failed(FOLLOWING, found, remedy)


def judge_sweeps(swept: Sequence[Swept], sweep_every: float) -> list[Finding]:
    """Judge whether the workflows with open batches are swept. Return no finding if there are no such workflows."""
    allowed = max(_INTERVALS * sweep_every, _AT_LEAST)
    late = [one for one in swept if one.seconds > allowed]
    if not late:
        return [ok(SWEEPS, "every workflow with open batches was swept lately")] if swept else []
    remedy = "Start a reconciler (python -m everyrun.reconciler). If one runs, see its readyz, log and rate limit."
    return [
        warning(
            f"{SWEEPS} of {one.workflow_id}",
            f"none was complete for {one.seconds / 60:.0f} minutes, while {one.batches} batches are open: runs without "
            "a webhook are not found",
            remedy,
        )
        for one in late
    ]


#: For these values of ``waits_for`` the check fails instead of warning, because further waiting does not help.
_FAILS = ("unannounced",)


def judge_late(late: Sequence[Late]) -> list[Finding]:
    """Judge the inputs that were not sent and have waited too long."""
    if not late:
        return [ok(WAITING, "none has waited too long")]
    lines = []
    for one in late:
        waiting = one.waiting
        found = f"{waiting.inputs} inputs of {one.submissions} submissions are {waiting.status}: {waiting.reason}"
        remedy = f"See: everyrun overdue. Then: {waiting.what_to_do or 'everyrun logs submission'}"
        calls_late = waiting.waits_for == "calling" and one.passed
        judged = failed if waiting.waits_for in _FAILS or calls_late else warning
        lines.append(judged(WAITING, found, remedy))
    return lines


def judge_receivers(receivers: Sequence[ReceiverFacts]) -> list[Finding]:
    """Judge if the receivers of notifications accept them. Return no finding if there are no receivers."""
    failing = [one for one in receivers if one.seconds >= _RECEIVER_FAILS]
    if not failing:
        return [ok(RECEIVERS, "none has failed for an hour")] if receivers else []
    return [
        warning(
            f"{RECEIVERS}: {one.receiver_id}",
            f"has accepted nothing for {one.seconds / 3600:.0f} hours: {one.last_error}",
            f"Fix the receiver; what waits is then sent. See: everyrun notify show {one.receiver_id}",
        )
        for one in failing
    ]
