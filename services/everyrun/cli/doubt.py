"""``everyrun doubt``: list calls to Extend with an unknown outcome, and decide about their inputs."""

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
    help="List calls with an unknown outcome, and decide about their inputs.\n\nExample: everyrun doubt list",
)

Chunk = Annotated[str, typer.Argument(metavar="CHUNK", help="Id of the chunk, from everyrun doubt list.")]
Force = Annotated[bool, typer.Option("--force", help="Decide now, even though evidence may still arrive.")]


def user_name() -> str:
    """Return the login name of the user on this machine, or an empty string if it is unknown."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


@doubt_app.command("list")
def list_(
    submission: Annotated[str | None, typer.Option(help="Only chunks of this submission.")] = None,
    state: Annotated[Literal["in_doubt", "held"] | None, typer.Option(help="Only chunks in this state.")] = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List chunks whose call to Extend has an unknown outcome.

    The list also says what each chunk waits for. A chunk in doubt waits for evidence: a run at Extend that names the
    call. A held chunk needs a person's decision.

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
        folding("reason"),
        folding("waits for"),
    )
    for row in rows:
        figures = (str(row["inputs"]), str(row["attempt"]), str(row["runs"]))
        table.add_row(row["chunk"], row["state"], *figures, escape(row["reason"] or ""), escape(row["waits_for"]))
    print_table(table)
    err.print("For details of a chunk, run: everyrun doubt show CHUNK")


@doubt_app.command()
def show(chunk: Chunk, as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """Show a chunk with its attempts, its evidence and the decisions.

    The evidence is the runs at Extend that name the chunk. Both past decisions and those that you can make are shown.

    Example: everyrun doubt show sub_01k....c00001
    """
    with Client(find(data_dir)) as client:
        _show(client.get(f"{client.target.submission_url}/v1/doubts/{chunk}"), as_json)


@doubt_app.command()
def adopt(
    chunk: Chunk,
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch at Extend.")],
    reason: Why,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Adopt a batch at Extend as the outcome of a chunk's call.

    As proof, Everyrun fetches a run of the batch. The reserved metadata key of this run must name the chunk.

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
    """Resend a chunk in a new call.

    If Extend did accept the earlier call, each input gets two runs, and the second run is reported as a duplicate.

    Example: everyrun doubt resend sub_01k....c00001 --reason "Extend's support has no such call"
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
    """Give up a chunk: its inputs become REFUSED.

    Their failure_reason is then DISCARDED, and their failure_message contains your reason. If a run of one of the
    inputs appears later, Everyrun still shows the run.

    Example: everyrun doubt discard sub_01k....c00001 --reason "the documents are out of date"
    """
    _decide(chunk, "discard", data_dir, as_json, reason=reason, force=force)


def _decide(chunk: str, decision: str, data_dir: Path, as_json: bool, **details: Any) -> None:
    with Client(find(data_dir)) as client:
        url = f"{client.target.submission_url}/v1/doubts/{chunk}/{decision}"
        _show(client.answer("POST", url, json={**details, "by": user_name()}), as_json)


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
        reason = f": {attempt['reason']}" if attempt["reason"] else ""
        text = f"{attempt['attempt']} {attempt['state']} {began}{batch}{reason}"
        out.print(f"{'attempt':<14} {escape(text)}", soft_wrap=True)
    for run in doubt["evidence"]:
        batch = run["batch_id"] or "unknown"
        text = f"run {run['run_id']} (batch: {batch}) names attempt {run['attempt']}; not matched yet: {run['reason']}"
        out.print(f"{'evidence':<14} {escape(text)}", soft_wrap=True)
    if doubt["can"] and not doubt["evidence"]:
        out.print(f"{'evidence':<14} none: no known run names this chunk")
    for decision in doubt["decisions"]:
        by = decision["decided_by"] or "Everyrun"
        at = decision["decided_at"][:19].replace("T", " ")
        text = f"{at} {decision['kind']} by {by}: {decision['reason']}"
        out.print(f"{'decision':<14} {escape(text)}", soft_wrap=True)
    if doubt["with_force"]:
        forced = " or ".join(doubt["with_force"])
        when = "once the doubt window has ended and two sweeps are complete; to do it now, add --force"
        out.print(f"{'later':<14} you can {forced} {when}", soft_wrap=True)
    for decision in doubt["can"]:
        batch = " BATCH" if decision == "adopt" else ""
        out.print(f"{'you can':<14} everyrun doubt {decision} {doubt['chunk']}{batch} --reason WHY", soft_wrap=True)
