"""``everyrun unmatched``: list runs at Extend that match no known input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli.arguments import DataDir
from everyrun.cli.client import Client, find
from everyrun.cli.console import err, folding, print_table

unmatched_app = typer.Typer(
    no_args_is_help=True,
    help="List runs at Extend that match no known input.\n\nExample: everyrun unmatched list --alarming",
)


@unmatched_app.command("list")
def list_unmatched(
    reason: Annotated[
        str | None, typer.Option(help="Only runs with this reason: batch_unknown, ambiguous_metadata, ...")
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="BATCH_ID", help="Only runs of this batch.")] = None,
    alarming: Annotated[
        bool,
        typer.Option("--alarming", help="Only runs unmatched for longer than EVERYRUN_UNMATCHED_AFTER."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of runs to list.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Write the runs as JSON, with their metadata.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List runs that match no known input, by reason, oldest first.

    Runs with the reason batch_unknown belong to a batch that another program sent. Register the batch (everyrun
    register) to match them.

    Example: everyrun unmatched list --reason batch_unknown --alarming
    """
    with Client(find(data_dir)) as client:
        query = {"reason": reason, "batch_id": batch, "alarming": "true" if alarming else None, "limit": limit}
        page = client.get(f"{client.target.query_url}/v1/unmatched", **query)
    if as_json:
        typer.echo(json.dumps(page, indent=2, ensure_ascii=False))
        return
    rows = page["unmatched"]
    if not rows:
        err.print("No unmatched run is selected." if page["by_reason"] else "Every known run matches an input.")
        return
    table = Table("run", "batch", "status", folding("reason"), "since", "alarming")
    for row in rows:
        since = row["first_seen"][:16].replace("T", " ")
        alarm = "[bold red]yes[/]" if row["alarming"] else ""
        texts = (row["run_id"], row["batch_id"] or "", row["status"], row["reason"], since)
        table.add_row(*map(escape, texts), alarm)
    print_table(table)
    for name, count in page["by_reason"].items():
        err.print(f"{count['runs']} {name}, {count['alarming']} of them alarming")
    if page["next_cursor"]:
        err.print(f"The first {limit} are shown, and there are more. To list more, raise --limit")
