"""``everyrun workflow`` and ``everyrun submission``: what is paused, and pausing and resuming it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli.client import Client, DataDir, find
from everyrun.cli.console import err, folding, print_table
from everyrun.cli.doubt import Json, Why, who
from everyrun.cli.watch import SubmissionId

workflow_app = typer.Typer(
    no_args_is_help=True, help="Workflows that nothing is sent for: Extend refused (401, 402, 403), or a person paused."
)
submission_app = typer.Typer(no_args_is_help=True, help="Have nothing more sent of a submission, and go on.")
WorkflowId = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Extend's id of the workflow.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(workflow_app, name="workflow", rich_help_panel="Deciding")
    app.add_typer(submission_app, name="submission", rich_help_panel="Deciding")


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
    said = "paused" if found["paused"] else "not paused"
    err.print(f"{of} is {said}." if found["changed"] else f"{of} is {said} already.")
