"""Define ``everyrun cancel`` and ``everyrun cancellations``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Json, SubmissionId, Why
from everyrun.cli.client import PATIENCE, Client, find
from everyrun.cli.console import confirm, counted, err, fail, out
from everyrun.cli.doubt import user_name
from everyrun.cli.id_file import read_ids

#: The most ids in one request, as the service allows.
_MAX_IDS = 50_000
_OUTCOMES = {
    "cancelled_unsent": "cancelled before they were sent",
    "cancelled": "cancelled at Extend",
    "finished": "finished before they could be cancelled",
    "in_review": "wait for a review at Extend, which does not cancel them",
    "refused": "not cancelled, because Extend refused it",
    "gone": "not found at Extend",
}


def cancel(
    target: Annotated[str, typer.Argument(metavar="ID", help="A submission id (sub_...), or a batch id of Extend.")],
    reason: Why,
    ids: Annotated[
        Path | None, typer.Option(help="Only inputs whose ids are in this file, one id on each line; - for stdin.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be cancelled.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all inputs are settled, and show the outcomes.")
    ] = False,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Cancel a submission, a batch or single inputs.

    The command shows how many inputs it affects, and then asks. Inputs that are not sent are cancelled at once. The
    runs of the others are cancelled at Extend, within the rate limit of your plan. Inputs that are already settled keep
    their results, and runs that wait for a review at Extend cannot be cancelled.

    Example: everyrun cancel sub_01k... --ids wrong.txt --reason "the wrong folder"
    """
    chosen = read_ids(ids) if ids else None
    if chosen is not None and not target.startswith("sub_"):
        fail("--ids needs a submission id (sub_...), because ids are unique only in a submission", exits.USAGE)
    if chosen is not None and len(chosen) > _MAX_IDS:
        fail(f"{ids}: it has {len(chosen):,} ids; one command can cancel {_MAX_IDS:,}. Split the file", exits.USAGE)
    body: dict[str, Any] = {"reason": reason, "by": user_name()} | ({} if chosen is None else {"ids": chosen})
    with Client(find(data_dir)) as client:
        kind = "submissions" if target.startswith("sub_") else "batches"
        url = f"{client.target.submission_url}/v1/{kind}/{target}/cancellations"
        found = client.answer("POST", url, within=PATIENCE, json={**body, "dry_run": True})
        if as_json and dry_run:
            typer.echo(json.dumps(found, indent=2))
            return
        for line in describe(found["inputs"]):
            err.print(escape(line), soft_wrap=True)
        if dry_run or not affected(found["inputs"]):
            return
        confirm(yes, f"Cancel {counted(affected(found['inputs']), 'input')}?", "Nothing was cancelled")
        # A repeated request does no harm: it cancels the same inputs.
        done = client.answer("POST", url, within=PATIENCE, json=body)
        if done["cancellation_id"] is None:
            err.print("Meanwhile every input has settled, so nothing was cancelled.")
            return
        submission_id = done["submission_id"]
        if wait:
            done = _wait(client, done["cancellation_id"])
            for line in describe_outcomes(done):
                err.print(escape(line), soft_wrap=True)
        else:
            follow = f"everyrun cancellations {submission_id}"
            err.print(f"Cancellation {done['cancellation_id']} is in progress. See: {follow}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(done, indent=2))


def cancellations(submission_id: SubmissionId, as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """Show the cancellations of a submission, newest first, with their outcomes.

    Example: everyrun cancellations sub_01k...
    """
    with Client(find(data_dir)) as client:
        url = f"{client.target.submission_url}/v1/cancellations"
        client.get(f"{client.target.submission_url}/v1/submissions/{submission_id}")
        listed = client.every(url, "cancellations", submission_id=submission_id, limit=1000)
        found = [client.get(f"{url}/{one['cancellation_id']}") for one in listed]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        err.print("Nothing of this submission was cancelled.")
    for one in found:
        scope = one["batch_id"] or {"submission": "the submission", "inputs": "single inputs"}.get(one["scope"], "")
        at = one["requested_at"][:16].replace("T", " ")
        out.print(escape(f"{one['cancellation_id']}  {at}  {scope}, by {one['by']}: {one['reason']}"), soft_wrap=True)
        for line in describe_outcomes(one):
            out.print(escape(f"  {line}"), soft_wrap=True)


def affected(inputs: dict[str, int]) -> int:
    """Return the number of inputs that a cancellation can affect. Pure."""
    return sum(inputs[name] for name in ("not_sent", "calling", "in_doubt", "at_extend"))


def describe(inputs: dict[str, int]) -> list[str]:
    """Return sentences that say what a cancellation affects, and what it does not. Pure."""
    lines = []
    if number := inputs["not_sent"]:
        lines.append(f"{counted(number, 'input is', 'inputs are')} not sent, and will be cancelled at once.")
    if number := inputs["calling"]:
        lines.append(
            f"{counted(number, 'input is', 'inputs are')} in a call in progress. If Extend accepts it, the runs will "
            "be cancelled at Extend."
        )
    if number := inputs["in_doubt"]:
        lines.append(
            f"{counted(number, 'input is', 'inputs are')} in doubt. They will not be sent again. Everyrun first waits "
            "to see if Extend accepted them."
        )
    if number := inputs["at_extend"]:
        lines.append(f"{counted(number, 'input is', 'inputs are')} at Extend. Their runs will be cancelled there.")
    if not lines:
        lines.append("There is nothing to cancel.")
    if number := inputs["in_review"]:
        waits = "input waits" if number == 1 else "inputs wait"
        lines.append(f"Not affected: {number} {waits} for a review at Extend, which does not cancel such runs.")
    if number := inputs["settled"]:
        lines.append(f"Not affected: {counted(number, 'input')} already settled.")
    return lines


def describe_outcomes(found: dict[str, Any]) -> list[str]:
    """Return lines that say how far a cancellation is. Pure."""
    lines = ["ended" if found["ended_at"] else "in progress"]
    lines += [f"{number:,} {text}" for name, text in _OUTCOMES.items() if (number := found["outcomes"][name])]
    if not found["ended_at"]:
        left = affected(found["inputs"])
        lines.append(f"{counted(left, 'input is', 'inputs are')} not settled yet")
    if found["problem"]:
        lines.append(f"Extend does not cancel runs at the moment: {found['problem']}. Everyrun keeps trying")
    return lines


def _wait(client: Client, cancellation_id: str) -> dict[str, Any]:
    """Return the cancellation when it has ended. After Ctrl-C, say that it continues, and end the command."""
    said = ""
    try:
        while True:
            url = f"{client.target.submission_url}/v1/cancellations/{cancellation_id}"
            found = client.get(url, PATIENCE)
            if found["ended_at"]:
                return found
            text = "; ".join(describe_outcomes(found))
            if text != said:
                err.print(escape(text), soft_wrap=True)
            said = text
            time.sleep(1.0)
    except KeyboardInterrupt:
        err.print(f"Cancellation {cancellation_id} continues.")
        raise typer.Exit(exits.INTERRUPTED) from None
