"""Define ``everyrun watch``, ``everyrun list`` and ``everyrun report``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, SubmissionId
from everyrun.cli.client import PATIENCE, Client, find
from everyrun.cli.console import counted, err, folding, print_table
from everyrun.cli.progress import FAILED, JobProgress, duration, summary

#: After _STILL seconds without a change, ``watch`` looks for the reason. The time until the next look doubles each
#: time, up to _MOST_STILL seconds.
_STILL, _MOST_STILL = 10.0, 120.0
#: Seconds between two printed lines of figures, if standard error is not a terminal.
_LINE_EVERY = 30.0
#: A poll that is late by more than this many seconds is reported as overdue. If the next poll is at least this many
#: seconds away, the time until then is shown in minutes.
_LATE = 120.0
#: The reasons (of everyrun.query.overdue) for which an overdue input cannot settle without a person.
_NEVER = ("deleted_upstream", "queue_lost")


def never_settled(report: dict[str, Any]) -> int:
    """Return the number of open inputs in a report that cannot settle without a person."""
    return sum(report["overdue_by_reason"].get(reason, 0) for reason in _NEVER)


def waiting_lines(found: dict[str, Any]) -> list[str]:
    """Return one line for each reason why inputs of a submission wait, with what the user can do about it.

    Inputs that only wait for their turn are left out.
    """
    return [
        f"{counted(one['inputs'], 'input')} {one['status']}: {one['reason']}"
        + (f". You can: {one['what_to_do']}" if one["what_to_do"] else "")
        for one in found["waiting"]
        if one["waits_for"] != "queued"
    ]


def person_lines(found: dict[str, Any]) -> list[str]:
    """Return one line for each kind of decision that a person must make before inputs can settle. Pure."""
    waits = found.get("needs_person") or {}
    lines = []
    if number := waits.get("needs_review"):
        lines.append(f"{number:,} {'waits' if number == 1 else 'wait'} for review at Extend")
    if number := waits.get("ambiguous_metadata"):
        runs = "run is" if number == 1 else "runs are"
        lines.append(f"{number:,} {runs} ambiguous: everyrun unmatched list")
    return lines


def _only_persons_help(found: dict[str, Any]) -> bool:
    needs: dict[str, int] = found.get("needs_person") or {}
    return int(found["open"]) <= sum(needs.values())


def estimate_lines(found: dict[str, Any]) -> list[str]:
    """Return lines that say when the submission will be done, if Extend asked to wait, and what it costs. Pure."""
    given = found.get("estimate")
    if not given:
        return []
    lines = []
    if given["seconds_left"] is not None:
        measured = f"at {given['settled_per_minute']:,.0f} inputs a minute, as in the last minutes"
        plan = f"at {given['plan_per_minute']:,.0f} files a minute, the rate of the plan"
        lines.append(f"about {duration(given['seconds_left'])} left, {measured if given['basis'] == 'rate' else plan}")
    lines += [text for text in given["stalls"] if text.startswith("Extend asked")]
    spent = given["credits"]
    if spent["spent"]:
        projected = f", about {spent['projected']:,.0f} expected in all" if found["open"] else ""
        lines.append(f"{spent['spent']:,.0f} credits spent{projected}")
    return lines


def polling_line(found: dict[str, Any]) -> str | None:
    """Return a line that says how many results are missing, and when Extend is polled for them next. Pure.

    Returns None if no result is missing.
    """
    polling = found.get("polling")
    if not polling:
        return None
    number, seconds = polling["missing"], polling["next_poll_in"]
    many = f"{number:,} result{'' if number == 1 else 's'}"
    awaited = f"{many} missing; next poll" if polling["polled"] else f"{many} awaited from webhooks; first poll"
    if seconds is None or seconds < -_LATE:
        return f"{awaited} overdue. See: everyrun doctor (the reconciler polls)"
    if seconds < 1:
        return f"{awaited} now"
    return f"{awaited} in {seconds:.0f} s" if seconds < _LATE else f"{awaited} in {seconds / 60:.0f} min"


def follow(client: Client, submission_id: str) -> int:
    """Show progress until no input can settle without a person any more; return the exit code.

    After Ctrl-C, print that the submission continues, and return INTERRUPTED.
    """
    try:
        return _follow(client, submission_id)
    except KeyboardInterrupt:
        err.print(f"The submission continues. Follow it with: everyrun watch {submission_id}")
        return exits.INTERRUPTED


def _follow(client: Client, submission_id: str) -> int:
    """Show progress until every input is settled, or until no open input can settle without a person.

    The second condition is checked when nothing has changed for _STILL seconds. If inputs wait, the reasons are then
    printed too. If standard error is not a terminal, a line of figures is printed every _LINE_EVERY seconds. An
    unavailable service is retried for PATIENCE seconds. Returns the exit code.
    """
    from rich.live import Live

    progress = JobProgress()
    known: dict[str, int] = {}
    said: list[str] = []
    look, wait, next_line = 0.0, _STILL, 0.0
    with Live(progress.table(), console=err, refresh_per_second=4) as live:
        while True:
            found = client.progress(submission_id, PATIENCE)
            live.update(progress.update(found))
            if not found["open"] and not found["will_retry"]:
                break
            now = time.monotonic()
            if not err.is_terminal and now >= next_line:
                err.print(progress.line(found), soft_wrap=True)
                next_line = now + _LINE_EVERY
            if found["by_status"] != known:
                known, wait = found["by_status"], _STILL
                look = now + wait
            elif now >= look:
                if _only_persons_help(found):
                    break
                # Fetch the report only if nothing changes, because the service counts every row for it.
                whole = client.report_if_quick(submission_id, PATIENCE)
                if whole is not None and whole["open"] <= never_settled(whole):
                    found = whole
                    break
                held = [*waiting_lines(found), *person_lines(found)]
                for line in held:
                    if line not in said:
                        err.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
                if missing := polling_line(found):
                    err.print(f"[dim]{missing}[/]", soft_wrap=True)
                for line in estimate_lines(found):
                    err.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
                said, wait = held, min(wait * 2, _MOST_STILL)
                look = time.monotonic() + wait
            time.sleep(0.5)
    if found["open"] and _only_persons_help(found):
        for line in person_lines(found):
            err.print(line, soft_wrap=True)
        err.print(f"Nothing else is open. After the decisions, follow on with: everyrun watch {submission_id}")
        return exits.NEEDS_PERSON
    if found["open"]:
        reasons = " or ".join(reason.replace("_", " ") for reason in _NEVER if reason in found["overdue_by_reason"])
        err.print(
            f"{counted(found['open'], 'input is', 'inputs are')} open and will not settle by themselves ({reasons}); "
            f"see: everyrun overdue {submission_id}, everyrun report {submission_id}"
        )
        return exits.INPUTS_FAILED
    failed = summary(found)["failed"]
    if failed:
        options = " ".join(f"--status {status}" for status in FAILED if found["by_status"].get(status))
        listed = f"list them with: everyrun results {submission_id} {options}"
        err.print(f"{counted(failed, 'input')} failed; {listed}", soft_wrap=True)
        return exits.INPUTS_FAILED
    return exits.OK


def watch(submission_id: SubmissionId, data_dir: DataDir = Path(".everyrun")) -> None:
    """Follow a submission until every input is settled or needs a person.

    Exit codes: 0 every input is PROCESSED; 3 some inputs failed, or can never settle; 6 every open input needs a
    person, to review a run at Extend or to decide about ambiguous runs.

    Example: everyrun watch sub_01k...
    """
    with Client(find(data_dir)) as client:
        raise typer.Exit(follow(client, submission_id))


def list_submissions(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of submissions to list.")] = 20,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List submissions, newest first.

    Example: everyrun list
    """
    with Client(find(data_dir)) as client:
        found = client.get(f"{client.target.submission_url}/v1/submissions", limit=limit)
        if not found["submissions"]:
            err.print("There are no submissions yet; hand one in with: everyrun submit MANIFEST")
            return
        table = Table(
            "submission",
            "handed in",
            "inputs",
            "settled",
            "failed",
            folding("waits for"),
        )
        for row in found["submissions"]:
            stands = client.progress(row["submission_id"])
            missing = polling_line(stands)
            held = escape("; ".join([*waiting_lines(stands), *person_lines(stands), *([missing] if missing else [])]))
            created = row["created_at"][:16].replace("T", " ")
            figures = (str(row["expected"]), str(stands["settled"]), str(summary(stands)["failed"]))
            table.add_row(row["submission_id"], created, *figures, held)
        print_table(table)


def report(
    submission_id: SubmissionId,
    as_json: Annotated[bool, typer.Option("--json", help="Write the whole report as JSON.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show the counts of a submission and check that they add up.

    For a moment, inputs can be "in transit": the queue counts them already, but their events have not been applied to
    the result tables yet. Exit code 1: the counts do not add up.

    Example: everyrun report sub_01k... --json
    """
    with Client(find(data_dir)) as client:
        found = client.report(submission_id)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if found["imbalances"]:
        raise typer.Exit(exits.ERROR)


def _balanced(found: dict[str, Any]) -> str:
    if found["imbalances"]:
        return "[bold red]no[/]"
    if found["in_transit"]:
        return f"[yellow]in transit ({found['in_transit']} inputs)[/]"
    return "yes"


def _show(found: dict[str, Any]) -> None:
    table = Table(folding(), "inputs", title=found["submission_id"])
    table.add_row("handed in", str(found["expected"]))
    for status, number in found["by_status"].items():
        table.add_row(status, str(number))
    table.add_section()
    table.add_row("settled", str(found["settled"]))
    table.add_row("open", str(found["open"]))
    for one in found["waiting"]:
        table.add_row(f"[yellow]{escape(one['status'])}: {escape(one['reason'])}[/]", str(one["inputs"]))
    for line in person_lines(found):
        table.add_row(f"[yellow]{escape(line)}[/]", "")
    if missing := polling_line(found):
        table.add_row(f"[dim]{missing}[/]", "")
    for line in estimate_lines(found):
        table.add_row(f"[dim]{escape(line)}[/]", "")
    for reason, number in found["overdue_by_reason"].items():
        table.add_row(f"[yellow]overdue: {reason.replace('_', ' ')}[/]", str(number))
    table.add_section()
    for name in ("unmatched", "duplicates", "pending_deliveries"):
        table.add_row(name.replace("_", " ") + (" (runs)" if name != "pending_deliveries" else ""), str(found[name]))
    for reason, number in found["unmatched_by_reason"].items():
        table.add_row(f"  {reason}", str(number))
    table.add_row("balanced", _balanced(found))
    print_table(table)
    for problem in found["imbalances"]:
        where = f"batch {problem['batch']}: " if "batch" in problem else ""
        what = f"{where}{problem['what']}: expected {problem['expected']}, found {problem['found']}"
        err.print(f"[red]{escape(what)}[/]")
