"""``everyrun quarantine``: messages that could not be understood, and what is done about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Json
from everyrun.cli.client import Client, find
from everyrun.cli.console import SHOWN, err, fail, folding, out, print_table
from everyrun.cli.doubt import who

quarantine_app = typer.Typer(no_args_is_help=True, help="Show, retry or discard messages that could not be understood.")

_AT_ONCE = 100
Sources = Annotated[list[str] | None, typer.Argument(metavar="[SOURCE]...", help="As list shows them.")]
Reason = Annotated[str | None, typer.Option(help="Only those whose reason has this text.")]
Topic = Annotated[str | None, typer.Option(help="Only those of this topic; webhook for webhooks.")]
Why = Annotated[str, typer.Option(help="Why; kept with the decision.")]


@quarantine_app.command("list")
def list_(
    state: Annotated[Literal["OPEN", "RETRIED", "DISCARDED", "all"], typer.Option(help="Only of this state.")] = "OPEN",
    reason: Reason = None,
    topic: Topic = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show what is in the quarantine: how many by reason, then each.

    Example: everyrun quarantine list --reason "not a workflow run"
    """
    only = None if state == "all" else state
    with Client(find(data_dir)) as client:
        reasons = client.get(f"{client.target.query_url}/v1/quarantine/reasons", state=only)["reasons"]
        rows = list(islice(pages(client, only, reason, topic), None if as_json else SHOWN + 1))
    if as_json:
        typer.echo(json.dumps({"reasons": reasons, "messages": rows}, indent=2))
        return
    if not rows:
        err.print("The quarantine has no such messages.")
        return
    if len(reasons) > 1 and reason is None and topic is None:
        table = Table(Column("messages", justify="right"), "topic", "state", folding("reason"))
        for row in reasons:
            table.add_row(str(row["messages"]), row["topic"], row["state"], escape(row["reason"]))
        print_table(table)
    table = Table("source", "state", "since", "bytes", folding("reason"))
    for row in rows[:SHOWN]:
        since = row["first_seen"][:16].replace("T", " ")
        table.add_row(escape(row["source"]), row["state"], since, str(row["bytes"]), escape(row["reason"]))
    print_table(table)
    if len(rows) > SHOWN:
        err.print(f"The first {SHOWN} are shown; choose with --reason and --topic, or write all with --json")


def pages(client: Client, state: str | None, reason: str | None, topic: str | None) -> Iterator[dict[str, Any]]:
    """Every message of that kind, page by page."""
    url = f"{client.target.query_url}/v1/quarantine"
    return client.every(url, "messages", state=state, reason=reason, topic=topic, limit=1000)


@quarantine_app.command()
def show(
    source: Annotated[str, typer.Argument(help="As list shows it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write its bytes, and nothing else.")] = False,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show a message: why it was not understood, its headers and bytes, and what was decided.

    Example: everyrun quarantine show webhook/3f2a...
    """
    import base64

    with Client(find(data_dir)) as client:
        message = client.get(f"{client.target.query_url}/v1/quarantine/{source}")
    if raw:
        typer.get_binary_stream("stdout").write(base64.b64decode(message["raw"]))
        return
    if as_json:
        typer.echo(json.dumps(message, indent=2))
        return
    for name in ("source", "topic", "partition", "offset", "state", "reason", "first_seen", "bytes"):
        if message[name] is not None:
            out.print(f"{name:<10} {escape(str(message[name]))}", soft_wrap=True)
    for name, value in message["headers"]:
        out.print(f"{'header':<10} {escape(name)}: {escape(value)}", soft_wrap=True)
    if message["topic"] == "webhook":
        out.print(f"{'header':<10} (those that hold secrets, and the signature, are not kept)", soft_wrap=True)
    for decision in message["decisions"]:
        text = f"{decision['decided_at']} {decision['kind']} by {decision['decided_by']}: {decision['reason']}"
        out.print(f"{'decision':<10} {escape(text)}", soft_wrap=True)
    text = message["text"] if message["text"] is not None else f"(not text; --raw writes it) {message['raw'][:400]}"
    out.print(escape(text[:4000]), soft_wrap=True)


@quarantine_app.command()
def retry(
    sources: Sources = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open message.")] = False,
    why: Why = "",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Look at messages again with the rules of today, and publish what is understood where it belongs.

    After an upgrade, for example. To do it twice publishes the same events under the same ids, which changes nothing.
    What is still not understood stays, with its reason. Exit code 1 when something stayed.

    Example: everyrun quarantine retry --reason "not a workflow run" --why "upgraded to 0.2"
    """
    counted = _decide("retry", sources, reason, topic, everything, why, data_dir)
    if counted.get("not-understood") or counted.get("unknown"):
        raise typer.Exit(exits.ERROR)


@quarantine_app.command()
def discard(
    sources: Sources = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open message.")] = False,
    why: Why = "",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Want nothing more done about messages. They are not deleted: list --state DISCARDED shows them.

    Example: everyrun quarantine discard webhook/3f2a... --why "a test of mine"
    """
    _refuse_selection(sources, reason, topic, everything)
    if not why:
        if not sys.stdin.isatty():
            fail("--why is needed: it is kept with the decision", exits.USAGE)
        why = typer.prompt("Why", err=True)
    counted = _decide("discard", sources, reason, topic, everything, why, data_dir)
    if counted.get("unknown"):
        raise typer.Exit(exits.NOT_FOUND)


def _refuse_selection(sources: Sequence[str] | None, reason: str | None, topic: str | None, everything: bool) -> None:
    """End the command unless exactly one way to select messages is used."""
    if bool(sources) + bool(reason or topic) + everything != 1:
        fail("name messages, or choose them with --reason and --topic, or take --all", exits.USAGE)


def _decide(
    what: str,
    sources: Sequence[str] | None,
    reason: str | None,
    topic: str | None,
    everything: bool,
    why: str,
    data_dir: Path,
) -> dict[str, int]:
    """Decide about all of them, a hundred at a time; how many had each outcome."""
    _refuse_selection(sources, reason, topic, everything)
    counted: dict[str, int] = {}
    with Client(find(data_dir)) as client:
        chosen = list(sources or (row["source"] for row in pages(client, "OPEN", reason, topic)))
        if not chosen:
            err.print("The quarantine has no such open messages.")
        for start in range(0, len(chosen), _AT_ONCE):
            body = {"sources": chosen[start : start + _AT_ONCE], "reason": why, "by": who()}
            answer = client.answer("POST", f"{client.target.submission_url}/v1/quarantine/{what}", json=body)
            for line in answer["decided"]:
                counted[line["outcome"]] = counted.get(line["outcome"], 0) + 1
                out.print(f"{line['outcome']:<15} {escape(line['source'])}  {escape(line['detail'])}", soft_wrap=True)
    err.print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counted.items())))
    return counted
