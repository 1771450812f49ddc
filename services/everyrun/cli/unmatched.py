"""``everyrun unmatched``."""

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

unmatched_app = typer.Typer(no_args_is_help=True, help="Show runs at Extend that belong to no known input.")


@unmatched_app.command("list")
def list_unmatched(
    reason: Annotated[
        str | None, typer.Option(help="Only those of this reason, for example batch_unknown or ambiguous_metadata.")
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="BATCH_ID", help="Only runs of this batch.")] = None,
    alarming: Annotated[
        bool, typer.Option("--alarming", help="Only those that have waited longer than EVERYRUN_UNMATCHED_AFTER.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The oldest so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with their metadata.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List runs that no input is known for, by reason, the oldest first.

    Runs of a batch that nobody registered have the reason batch_unknown: account for it with everyrun register.

    Example: everyrun unmatched list --reason batch_unknown --alarming
    """
    with Client(find(data_dir)) as client:
        query = {"reason": reason, "batch_id": batch, "alarming": "true" if alarming else None, "limit": limit}
        found = client.get(f"{client.target.query_url}/v1/unmatched", **query)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = found["unmatched"]
    if not rows:
        err.print("Every run that was seen belongs to an input" if not found["by_reason"] else "None of that kind")
        return
    table = Table("run", "batch", "status", folding("reason"), "since", "alarming")
    for row in rows:
        since = row["first_seen"][:16].replace("T", " ")
        alarm = "[bold red]yes[/]" if row["alarming"] else ""
        texts = (row["run_id"], row["batch_id"] or "", row["status"], row["reason"], since)
        table.add_row(*map(escape, texts), alarm)
    print_table(table)
    for name, number in found["by_reason"].items():
        err.print(f"{number['runs']} {name}, {number['alarming']} of them alarming")
    if found["next_cursor"]:
        err.print(f"The first {limit} are shown; there are more")
