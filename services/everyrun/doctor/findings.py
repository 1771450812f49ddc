"""One line of the doctor's report, and how a clock, a service and what is not set are judged. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from everyrun.doctor.facts import Answer

Level = Literal["ok", "warning", "failed"]

#: A clock that is off by more, in seconds, is worth a word. Date headers are whole seconds.
CLOCK_WARNS = 5.0


class Finding(Struct, frozen=True):
    """One line of the report: what was looked at, how it is, what was found, what to do (empty where all is well)."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Not wrong, or not known to be right."""
    return Finding(check, "warning", found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check, "failed", found, remedy)


def not_checked(check: str, first: str) -> Finding:
    """What cannot be told before something else is mended."""
    return warning(check, "not checked", f"First mend: {first}.")


def not_set(check: str, variable: str, meaning: str) -> Finding:
    """A setting without which the check cannot be made."""
    return failed(check, f"{variable} is not set", f"Set it: {meaning}")


def judge_clock(whose: str, ahead: float | None, max_age: float, max_ahead: float) -> Finding:
    """Whether a clock agrees with ours; a webhook is refused that is over ``max_age`` old or ``max_ahead`` ahead."""
    check = f"clock of {whose}"
    if ahead is None:
        return warning(check, "not told", f"First make {whose} answer.")
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    remedy = f"Set the clocks by NTP, of this machine (timedatectl; chronyc tracking) and of {whose}."
    if ahead > max_ahead or ahead < -max_age:
        return failed(check, f"{found}: signed webhooks are refused as stale or from the future", remedy)
    if abs(ahead) > CLOCK_WARNS:
        return warning(check, found, remedy)
    return ok(check, "agrees with this machine's")


#: The setting that says where a service is.
URLS = {
    "bridge": "EVERYRUN_BRIDGE_URL",
    "submission": "EVERYRUN_SUBMISSION_URL",
    "query": "EVERYRUN_QUERY_URL",
    "processor": "EVERYRUN_PROCESSOR_URLS",
    "reconciler": "EVERYRUN_RECONCILER_URL",
    "replay": "EVERYRUN_REPLAY_URL",
}


def judge_service(name: str, url: str, ready: Answer) -> Finding:
    """Judge whether a service can do what its callers ask; an empty ``url`` is one that is not known here."""
    if not url:
        return warning(name, "not looked at: it is not set where it runs", f"Set {URLS[name]} to its address.")
    waiting = ready.body.get("waiting") if isinstance(ready.body, dict) else None
    why = "; ".join(f"{part}: {text}" for part, text in waiting.items()) if isinstance(waiting, dict) else ""
    if ready.status == 200 and why:
        return warning(name, f"ready at {url}, but waits for {why}", "See what it waits for, above, and its log.")
    if ready.status == 200:
        return ok(name, f"ready at {url}")
    if ready.status == 0:
        remedy = (
            f"Start it (python -m everyrun.{name}), or set {URLS[name]} to where it is. Where it runs and does not "
            "answer in time, it stands still: see its log, and restart it."
        )
        return failed(name, f"{url} does not answer: {ready.message}", remedy)
    return failed(name, f"not ready: {why or ready.message or ready.status}", "See what it waits for, and its log.")
