"""Define ``everyrun decisions``: show who decided what, when and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli.arguments import DataDir, Json
from everyrun.cli.client import Client, find
from everyrun.cli.console import err, folding, print_table


def decisions(
    submission_id: Annotated[
        str | None, typer.Argument(metavar="[SUBMISSION]", help="Only decisions about this submission.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: inputs-retried, submission-paused, doubt-resent, ...")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Only by this person or token; Everyrun: by a rule.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this time on: 2026-03-03T12:00:00Z.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of decisions.")] = 50,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show who decided what, when and why, the newest first.

    These are retries, cancellations, pauses, decisions about calls in doubt and quarantined messages, and changes of
    tokens and receivers. The log has each of them as an event.

    Example: everyrun decisions sub_01k... --kind inputs-retried
    """
    query = {"submission_id": submission_id, "kind": kind, "by": by, "since": since, "limit": limit}
    with Client(find(data_dir)) as client:
        page = client.get(f"{client.target.query_url}/v1/decisions", **query)
    rows = page["decisions"]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        err.print("Nothing was decided, as far as these conditions go.")
        return
    table = Table("when (UTC)", "what", "about", "by", folding("reason"))
    for row in rows:
        table.add_row(*map(escape, decision_row(row)))
    print_table(table)
    if page["next_cursor"]:
        err.print(f"There are older ones; show more with --limit (now {limit}).")


def decision_row(row: dict[str, Any]) -> list[str]:
    """Return the cells of a decision. Pure."""
    about = row["chunk"] or row["batch_id"] or row["submission_id"] or row["source"] or row["workflow_id"] or ""
    return [
        row["decided_at"][:19].replace("T", " "),
        row["kind"],
        about,
        row["decided_by"] or "Everyrun",
        row["reason"],
    ]
