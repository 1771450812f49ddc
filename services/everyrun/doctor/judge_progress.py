"""Whether work goes on: the tables follow the log, workflows are swept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from everyrun.doctor.facts import Following, Late, Swept
from everyrun.doctor.findings import Finding, failed, not_checked, ok, warning

FOLLOWING, SWEEPS, WAITING = "tables follow the log", "sweeps", "inputs that wait"
#: A sweep is late if none was complete for so many of its intervals, and for so many seconds.
_INTERVALS, _AT_LEAST = 4.0, 600.0


def judge_following(facts: Following) -> Finding:
    """Judge whether the tables move while they are behind the log."""
    if facts.problem is not None:
        return not_checked(FOLLOWING, f"Kafka and Postgres ({facts.problem})")
    if not facts.behind:
        return ok(FOLLOWING, "every record is applied")
    if facts.moved:
        return ok(FOLLOWING, f"{facts.behind} records were still to be applied, and it goes on")
    found = f"{facts.behind} records are not applied, and none was for {facts.seconds:.0f} s: results stand still"
    remedy = "Start a processor (python -m everyrun.processor); where one runs, see its readyz and its log, restart it."
    return failed(FOLLOWING, found, remedy)


def judge_sweeps(swept: Sequence[Swept], sweep_every: float) -> list[Finding]:
    """Judge whether the workflows that have open batches are swept; nothing to say where there are none."""
    allowed = max(_INTERVALS * sweep_every, _AT_LEAST)
    late = [one for one in swept if one.seconds > allowed]
    if not late:
        return [ok(SWEEPS, "every workflow with open batches was swept lately")] if swept else []
    remedy = "Start a reconciler (python -m everyrun.reconciler); where one runs, see its readyz and log, and its rate."
    return [
        warning(
            f"{SWEEPS} of {one.workflow_id}",
            f"none was complete for {one.seconds / 60:.0f} minutes, while {one.batches} batches are open: runs that "
            "no webhook told of are not found",
            remedy,
        )
        for one in late
    ]


#: What cannot be waited for: somebody should have acted.
_FAILS = ("unannounced",)


def judge_late(late: Sequence[Late]) -> list[Finding]:
    """Judge the inputs that were not sent and have waited longer than they should."""
    if not late:
        return [ok(WAITING, "none waits longer than it should")]
    lines = []
    for one in late:
        waiting = one.waiting
        found = f"{waiting.inputs} inputs of {one.submissions} submissions are {waiting.status}: {waiting.reason}"
        remedy = f"See: everyrun overdue. Then: {waiting.what_to_do or 'everyrun logs submission'}"
        calls_late = waiting.waits_for == "calling" and one.passed
        judged = failed if waiting.waits_for in _FAILS or calls_late else warning
        lines.append(judged(WAITING, found, remedy))
    return lines
