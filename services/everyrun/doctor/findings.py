"""Define a finding, and judge clocks, services and missing settings. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from msgspec import Struct

from everyrun.doctor.facts import Answer

Level = Literal["ok", "warning", "failed"]

#: A clock that differs by more than this many seconds gets a warning. Date headers give only whole seconds.
CLOCK_WARNS = 5.0


class Finding(Struct, frozen=True):
    """One line of the doctor's report: the check, its result, what was found, and what to do (empty if all is well)."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that something may be wrong."""
    return Finding(check, "warning", found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that something does not work."""
    return Finding(check, "failed", found, remedy)


def not_checked(check: str, first: str) -> Finding:
    """Return a finding that a check was skipped, because something else must be fixed first."""
    return warning(check, "not checked", f"First fix: {first}.")


def not_set(check: str, variable: str, meaning: str) -> Finding:
    """Return a finding that a check is impossible because a setting is missing."""
    return failed(check, f"{variable} is not set", f"Set it: {meaning}")


def judge_clock(whose: str, ahead: float | None, max_age: float, max_ahead: float) -> Finding:
    """Judge a clock that is ``ahead`` seconds ahead of this machine's (None: unknown).

    Suppose that webhooks are signed with this clock's time. The check fails if the bridge would refuse them, because
    they are over ``max_age`` seconds old, or over ``max_ahead`` seconds in the future.
    """
    check = f"clock of {whose}"
    if ahead is None:
        return warning(check, "unknown", f"First make {whose} answer.")
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's clock"
    remedy = f"Synchronize the clocks of this machine (timedatectl; chronyc tracking) and of {whose} by NTP."
    if ahead > max_ahead or ahead < -max_age:
        return failed(
            check, f"{found}: the bridge refuses webhooks with such times (too old, or in the future)", remedy
        )
    if abs(ahead) > CLOCK_WARNS:
        return warning(check, found, remedy)
    return ok(check, "agrees with this machine's clock")


#: The setting with the URL of each service.
URLS = {
    "bridge": "EVERYRUN_BRIDGE_URL",
    "submission": "EVERYRUN_SUBMISSION_URL",
    "query": "EVERYRUN_QUERY_URL",
    "processor": "EVERYRUN_PROCESSOR_URLS",
    "reconciler": "EVERYRUN_RECONCILER_URL",
    "replay": "EVERYRUN_REPLAY_URL",
    "notifier": "EVERYRUN_NOTIFIER_URL",
}


#: The parts in a service's /readyz that wait for Kafka or Postgres. The doctor checks both servers itself. So if a
#: service waits only for them, the finding about the service says to fix them first. The part ``extend`` waits for
#: Postgres, which stores to which Extend the installation is bound.
_PARTS_OF = {"Kafka": {"kafka", "topics", "producer", "log_position", "index"}, "Postgres": {"database", "extend"}}


def judge_service(name: str, url: str, ready: Answer, broken: Collection[str] = ()) -> Finding:
    """Judge whether a service can serve its callers. ``url`` is empty if the setting with the service's URL is missing.

    ``broken`` lists the servers (Kafka, Postgres) that do not answer. If the service waits only for such servers, the
    finding says to fix them first.
    """
    if not url:
        return warning(name, "not checked: its URL is not set", f"Set {URLS[name]} to its URL.")
    waiting = ready.body.get("waiting") if isinstance(ready.body, dict) else None
    why = "; ".join(f"{part}: {text}" for part, text in waiting.items()) if isinstance(waiting, dict) else ""
    causes = [server for server, parts in _PARTS_OF.items() if waiting and server in broken and parts & set(waiting)]
    if isinstance(waiting, dict) and set(waiting) <= {part for server in causes for part in _PARTS_OF[server]}:
        found = f"waits for {', '.join(causes)}"
        if ready.status == 200 and causes:
            return warning(name, f"ready at {url}, but {found}", f"First fix: {', '.join(causes)}.")
        if causes:
            return failed(name, f"not ready: {found}", f"First fix: {', '.join(causes)}.")
    if ready.status == 200 and why:
        return warning(name, f"ready at {url}, but waits for {why}", "See the other findings and the service's log.")
    if ready.status == 200:
        return ok(name, f"ready at {url}")
    if ready.status == 0:
        remedy = (
            f"Start it (python -m everyrun.{name}), or set {URLS[name]} to its URL. If it runs and does not answer, it "
            "hangs: see its log, and restart it."
        )
        return failed(name, f"{url} does not answer: {ready.message}", remedy)
    why = why or ready.message or str(ready.status)
    return failed(name, f"not ready: {why}", "See the other findings and the service's log.")


def judge_object(address: str, answer: Answer) -> Finding:
    """Judge if the submission service can read and presign an object in a bucket."""
    check = f"object {address}"
    if answer.status == 200:
        return ok(check, "the submission service can read and presign it")
    if answer.status == 0:
        return not_checked(check, "submission" + (f" ({answer.message})" if answer.message else ""))
    remedy = "Set the provider's environment variables where the submission service runs: docs/how-to/sources.md."
    return failed(check, answer.message or str(answer.status), remedy)
