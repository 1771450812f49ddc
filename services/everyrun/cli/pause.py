"""Define ``everyrun workflow`` and ``everyrun submission``, which pause and resume workflows and submissions."""

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
from everyrun.cli.doubt import user_name

workflow_app = typer.Typer(
    no_args_is_help=True,
    help="Pause or resume a workflow, or list the paused ones.\n\nExample: everyrun workflow list",
)
submission_app = typer.Typer(
    no_args_is_help=True,
    help='Pause or resume a submission.\n\nExample: everyrun submission pause sub_01k... --reason "the wrong folder"',
)
WorkflowId = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Id of the workflow at Extend.")]


@workflow_app.command("list")
def list_(as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """List paused workflows, each with the reason.

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
    table = Table("workflow", "since", "by", folding("reason"))
    for row in rows:
        since = row["since"][:16].replace("T", " ")
        table.add_row(row["workflow_id"], since, escape(row["by"] or "Everyrun"), escape(row["reason"]))
    print_table(table)
    err.print("After fixing the cause, run: everyrun workflow resume WORKFLOW --reason WHY")


@workflow_app.command("pause")
def pause_workflow(workflow: WorkflowId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Pause a workflow: send no inputs to it.

    Calls to Extend that are in progress are completed.

    Example: everyrun workflow pause workflow_7f3 --reason "a new version is coming"
    """
    _change("workflows", workflow, "pause", reason, data_dir)


@workflow_app.command("resume")
def resume_workflow(workflow: WorkflowId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Resume a workflow: send its waiting inputs.

    If Extend blocked the workflow, fix the cause first: the API key, the credits or the permission.

    Example: everyrun workflow resume workflow_7f3 --reason "credits added"
    """
    _change("workflows", workflow, "resume", reason, data_dir)


@submission_app.command("pause")
def pause_submission(submission_id: SubmissionId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Pause a submission: send no more of its inputs.

    Batches that Extend has accepted continue.

    Example: everyrun submission pause sub_01k... --reason "the wrong folder"
    """
    _change("submissions", submission_id, "pause", reason, data_dir)


@submission_app.command("resume")
def resume_submission(submission_id: SubmissionId, reason: Why, data_dir: DataDir = Path(".everyrun")) -> None:
    """Resume a submission: send its waiting inputs.

    Example: everyrun submission resume sub_01k... --reason "it was the right one"
    """
    _change("submissions", submission_id, "resume", reason, data_dir)


def _change(kind: str, target_id: str, action: str, reason: str, data_dir: Path) -> None:
    with Client(find(data_dir)) as client:
        url = f"{client.target.submission_url}/v1/{kind}/{target_id}/{action}"
        answer = client.answer("POST", url, json={"reason": reason, "by": user_name()})
    for line in describe_change(kind, target_id, answer):
        err.print(escape(line), soft_wrap=True)


def describe_change(kind: str, target_id: str, answer: dict[str, Any]) -> list[str]:
    """Return sentences that say for which inputs the pause or resumption changes something, and for which not. Pure."""
    inputs, waits = answer["inputs"], answer["inputs"]["waits_for"]
    if answer["paused"]:
        unchanged = f"{target_id} was paused already (its first reason is kept, the new one is not)"
        outcome = "Paused" if answer["changed"] else unchanged
        lines = [f"{outcome}: {_inputs(inputs['waiting'], 'waiting')} will not be sent."]
    else:
        outcome = "Resumed" if answer["changed"] else f"{target_id} was not paused"
        lines = [f"{outcome}: {_inputs(inputs['will_be_sent'], 'waiting')} will be sent."]
        if number := waits.get("workflow_paused"):
            resume = f"everyrun workflow resume {answer['workflow_id']} --reason WHY"
            lines.append(f"Still waiting: {_inputs(number)}, because the workflow is paused. Resume it: {resume}")
        if number := waits.get("submission_paused"):
            lines.append(f"Still waiting: {_inputs(number)}, of paused submissions. To find them, run: everyrun list")
    if number := waits.get("secrets_removed"):
        lines.append(
            f"Cannot be sent: {_inputs(number)}, whose links and passwords were deleted. Submit them again, in a new "
            "submission."
        )
    if inputs["calling"]:
        lines.append(f"{_are(inputs['calling'])} in a call in progress, which will be completed.")
    if inputs["in_doubt"]:
        option = f" --submission {target_id}" if kind == "submissions" else ""
        lines.append(f"{_are(inputs['in_doubt'])} in doubt. For details, run: everyrun doubt list{option}")
    if inputs["submitted"]:
        lines.append(f"Submitted already, and not affected: {_inputs(inputs['submitted'])}.")
    return lines


def _inputs(number: int, kind: str = "") -> str:
    return f"{number:,} {kind}{' ' if kind else ''}input{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return f"{_inputs(number)} {'is' if number == 1 else 'are'}"
