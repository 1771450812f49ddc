"""Define ``everyrun overdue``: list inputs that have waited too long."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli.arguments import DataDir
from everyrun.cli.client import Client, find
from everyrun.cli.console import SHOWN, err, folding, print_table


def overdue(
    submission_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A submission id (sub_...); by default all submissions.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write all overdue inputs as JSON.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List inputs that have waited too long, each with the reason.

    First, the command lists the chunks that should have been sent by now, each with the reason and the time until which
    it waits, and says what you can do. Then it lists the overdue inputs that were sent.

    Example: everyrun overdue sub_01k...
    """
    with Client(find(data_dir)) as client:
        if submission_id is not None:
            # This request ends the command if the submission does not exist. Without it, the command would print
            # "Nothing is overdue", as if all were well.
            client.progress(submission_id)
        url = f"{client.target.query_url}/v1/overdue"
        unsent = client.get(url, submission_id=submission_id, limit=1)["unsent"]
        rows = list(
            islice(client.every(url, "inputs", submission_id=submission_id, limit=1000), None if as_json else SHOWN + 1)
        )
    if as_json:
        typer.echo(json.dumps({"unsent": unsent, "inputs": rows}, indent=2))
        return
    if unsent:
        _show_unsent(unsent)
    if rows:
        _show_sent(rows)
    if not rows and not unsent:
        err.print("Nothing is overdue.")


def _show_unsent(chunks: list[dict[str, Any]]) -> None:
    table = Table("not sent", Column("inputs", justify="right"), "status", "until", folding("why"))
    for one in chunks[:SHOWN]:
        until = (one["until"] or "")[:19].replace("T", " ")
        table.add_row(one["chunk"], str(one["inputs"]), one["status"], until, escape(one["reason"]))
    print_table(table)
    if len(chunks) > SHOWN:
        err.print(f"The first {SHOWN} of them are shown; --json writes more")
    for helps in dict.fromkeys(one["what_to_do"] for one in chunks if one["what_to_do"]):
        err.print(f"You can: {escape(helps)}", soft_wrap=True)


def _show_sent(rows: list[dict[str, Any]]) -> None:
    table = Table("input", "run", "status", "sent", folding("reason"))
    for row in rows[:SHOWN]:
        sent = row["sent_at"][:16].replace("T", " ")
        texts = (row["input_id"], row["run_id"] or "", row["status"], sent, row["reason"].replace("_", " "))
        table.add_row(*map(escape, texts))
    print_table(table)
    if len(rows) > SHOWN:
        err.print(f"The first {SHOWN} are shown; --json writes all")
    else:
        counted = Counter(row["reason"].replace("_", " ") for row in rows)
        err.print(", ".join(f"{number} {reason}" for reason, number in sorted(counted.items())))
