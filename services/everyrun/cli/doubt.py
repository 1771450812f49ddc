"""``everyrun doubt``: calls whose outcome is unknown, and what is done about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli.arguments import DataDir, Json, Why
from everyrun.cli.client import Client, find
from everyrun.cli.console import err, folding, out, print_table

doubt_app = typer.Typer(
    no_args_is_help=True,
    help="Show calls whose outcome is unknown, and decide about their inputs.",
)

Chunk = Annotated[str, typer.Argument(metavar="CHUNK", help="As list shows it.")]
Force = Annotated[bool, typer.Option("--force", help="Also while evidence may still come.")]


def who() -> str:
    """The name of who calls, as the machine knows it."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


@doubt_app.command("list")
def list_(
    submission: Annotated[str | None, typer.Option(help="Only of this submission.")] = None,
    state: Annotated[Literal["in_doubt", "held"] | None, typer.Option(help="Only of this state.")] = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show the chunks whose outcome is unknown: those that wait for evidence, and those held for a person.

    Example: everyrun doubt list --state held
    """
    with Client(find(data_dir)) as client:
        if submission is not None:
            client.get(f"{client.target.submission_url}/v1/submissions/{submission}")
        url = f"{client.target.submission_url}/v1/doubts"
        rows = list(client.every(url, "doubts", submission_id=submission, state=state, limit=1000))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        err.print("Nothing is in doubt.")
        return
    table = Table(
        "chunk",
        "state",
        Column("inputs", justify="right"),
        Column("attempt", justify="right"),
        Column("runs seen", justify="right"),
        folding("why"),
        folding("waits for"),
    )
    for row in rows:
        figures = (str(row["inputs"]), str(row["attempt"]), str(row["runs"]))
        table.add_row(row["chunk"], row["state"], *figures, escape(row["reason"] or ""), escape(row["waits_for"]))
    print_table(table)
    err.print("Look at one with: everyrun doubt show CHUNK")


@doubt_app.command()
def show(chunk: Chunk, as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """Show a chunk: its attempts, the runs that name it, the decisions taken, and what can be done.

    Example: everyrun doubt show sub_01k....c00001
    """
    with Client(find(data_dir)) as client:
        _show(client.get(f"{client.target.submission_url}/v1/doubts/{chunk}"), as_json)


@doubt_app.command()
def adopt(
    chunk: Chunk,
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Extend's id of the batch that it became.")],
    reason: Why,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Say which batch a chunk became. Extend is asked for a run of the batch, which must name the chunk.

    Example: everyrun doubt adopt sub_01k....c00001 batch_7f3 --reason "seen in Extend's dashboard"
    """
    _decide(chunk, "adopt", data_dir, as_json, reason=reason, batch_id=batch)


@doubt_app.command()
def resend(
    chunk: Chunk,
    reason: Why,
    force: Force = False,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Send a chunk again. Should it have been taken after all, its inputs have two runs, and the second is shown.

    Example: everyrun doubt resend sub_01k....c00001 --reason "Extend's support says it never came"
    """
    _decide(chunk, "resend", data_dir, as_json, reason=reason, force=force)


@doubt_app.command()
def discard(
    chunk: Chunk,
    reason: Why,
    force: Force = False,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Do not send a chunk again: its inputs are REFUSED, reason DISCARDED. A run that comes all the same is shown.

    Example: everyrun doubt discard sub_01k....c00001 --reason "the documents are out of date"
    """
    _decide(chunk, "discard", data_dir, as_json, reason=reason, force=force)


def _decide(chunk: str, what: str, data_dir: Path, as_json: bool, **decision: Any) -> None:
    with Client(find(data_dir)) as client:
        url = f"{client.target.submission_url}/v1/doubts/{chunk}/{what}"
        _show(client.answer("POST", url, json={**decision, "by": who()}), as_json)


def _show(doubt: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(doubt, indent=2))
        return
    for name in ("chunk", "submission_id", "workflow_id", "inputs", "state", "reason", "batch_id", "waits_for"):
        if doubt[name] is not None:
            out.print(f"{name.replace('_', ' '):<14} {escape(str(doubt[name]))}", soft_wrap=True)
    for attempt in doubt["attempts"]:
        began = (attempt["requested_at"] or "")[:19].replace("T", " ")
        batch = f", {attempt['batch_id']}" if attempt["batch_id"] else ""
        why = f": {attempt['reason']}" if attempt["reason"] else ""
        text = f"{attempt['attempt']} {attempt['state']} {began}{batch}{why}"
        out.print(f"{'attempt':<14} {escape(text)}", soft_wrap=True)
    for run in doubt["evidence"]:
        text = (
            f"run {run['run_id']} names attempt {run['attempt']}, batch {run['batch_id'] or 'unknown'}: {run['reason']}"
        )
        out.print(f"{'evidence':<14} {escape(text)}", soft_wrap=True)
    if doubt["can"] and not doubt["evidence"]:
        out.print(f"{'evidence':<14} none: no run that names this chunk was seen")
    for made in doubt["decisions"]:
        by = made["decided_by"] or "Everyrun"
        text = f"{made['decided_at'][:19].replace('T', ' ')} {made['kind']} by {by}: {made['reason']}"
        out.print(f"{'decision':<14} {escape(text)}", soft_wrap=True)
    if doubt["with_force"]:
        later = " and ".join(doubt["with_force"])
        out.print(f"{'later':<14} {later}, once the window and two sweeps are over; now with --force", soft_wrap=True)
    for can in doubt["can"]:
        batch = " BATCH" if can == "adopt" else ""
        out.print(f"{'you can':<14} everyrun doubt {can} {doubt['chunk']}{batch} --reason WHY", soft_wrap=True)
