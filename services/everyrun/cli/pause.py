"""``everyrun workflow`` and ``everyrun submission``: what is paused, and pausing and resuming it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli.arguments import DataDir, Json, SubmissionId, Why
from everyrun.cli.client import Client, find
from everyrun.cli.console import err, folding, print_table
from everyrun.cli.doubt import who

workflow_app = typer.Typer(no_args_is_help=True, help="Pause or resume a workflow, or list the paused ones.")
submission_app = typer.Typer(no_args_is_help=True, help="Pause or resume a submission.")
WorkflowId = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Extend's id of the workflow.")]


@workflow_app.command("list")
def list_(as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """Show the workflows that are paused, and why.

    Example: everyrun workflow list
    """
    with Client(find(data_dir)) as client:
        rows = list(client.every(f"{client.target.submission_url}/v1/workflows/paused", "workflows", limit=1000))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        err.print("No workflow is paused.")
        return
    table = Table("workflow", "since", "by", folding("why"))
    for row in rows:
        since = row["since"][:16].replace("T", " ")
        table.add_row(row["workflow_id"], since, escape(row["by"] or "Everyrun"), escape(row["reason"]))
    print_table(table)
    err.print("When the cause is seen to: everyrun workflow resume WORKFLOW --reason WHY")


@workflow_app.command("pause")
def pause_workflow(workflow: WorkflowId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Send nothing for a workflow. Calls under way end as they do.

    Example: everyrun workflow pause workflow_7f3 --reason "a new version is on its way"
    """
    _change("workflows", workflow, "pause", reason, data_dir)


@workflow_app.command("resume")
def resume_workflow(workflow: WorkflowId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Send for a workflow again, when what stopped it is seen to: the key, the credits, the permission.

    Example: everyrun workflow resume workflow_7f3 --reason "credits bought"
    """
    _change("workflows", workflow, "resume", reason, data_dir)


@submission_app.command("pause")
def pause_submission(submission_id: SubmissionId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Send nothing more of a submission. Batches that are sent go on.

    Example: everyrun submission pause sub_01k... --reason "the wrong folder"
    """
    _change("submissions", submission_id, "pause", reason, data_dir)


@submission_app.command("resume")
def resume_submission(submission_id: SubmissionId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Send of a submission again.

    Example: everyrun submission resume sub_01k... --reason "it was the right one"
    """
    _change("submissions", submission_id, "resume", reason, data_dir)


def _change(kind: str, of: str, what: str, reason: str, data_dir: Path) -> None:
    with Client(find(data_dir)) as client:
        url = f"{client.target.submission_url}/v1/{kind}/{of}/{what}"
        found = client.answer("POST", url, json={"reason": reason, "by": who()})
    for line in lines_of(kind, of, found):
        err.print(escape(line), soft_wrap=True)


def lines_of(kind: str, of: str, found: dict[str, Any]) -> list[str]:
    """Return what to say of a pause or a resumption: what it stops or starts, and what it does not. Pure."""
    inputs, waits = found["inputs"], found["inputs"]["waits_for"]
    if found["paused"]:
        kept = "the first reason stays, the new one is not kept"
        begin = "Paused" if found["changed"] else f"{of} was paused already ({kept})"
        lines = [f"{begin}: {_inputs(inputs['waiting'], 'waiting')} will not be sent."]
    else:
        begin = "Resumed" if found["changed"] else f"{of} was not paused"
        lines = [f"{begin}: {_inputs(inputs['will_be_sent'], 'waiting')} will be sent."]
        if number := waits.get("workflow_paused"):
            resume = f"everyrun workflow resume {found['workflow_id']} --reason WHY"
            lines.append(f"Still waiting: {_inputs(number)}, since the workflow is paused. Resume it too: {resume}")
        if number := waits.get("submission_paused"):
            lines.append(
                f"Still waiting: {_inputs(number)}, of submissions that are paused themselves. See: everyrun list"
            )
    if number := waits.get("secrets_removed"):
        lines.append(
            f"Cannot be sent: {_inputs(number)}, whose links and passwords are no longer kept. Submit them again, as "
            "a submission of their own."
        )
    if inputs["calling"]:
        lines.append(f"{_are(inputs['calling'])} in a call that is in progress, which ends as it does.")
    if inputs["in_doubt"]:
        only = f" --submission {of}" if kind == "submissions" else ""
        lines.append(f"{_are(inputs['in_doubt'])} in doubt. See: everyrun doubt list{only}")
    if inputs["submitted"]:
        lines.append(f"Sent before, and not affected: {_inputs(inputs['submitted'])}.")
    return lines


def _inputs(number: int, kind: str = "") -> str:
    return f"{number:,} {kind}{' ' if kind else ''}input{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return f"{_inputs(number)} {'is' if number == 1 else 'are'}"
