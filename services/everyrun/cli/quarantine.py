"""``everyrun quarantine``: list, show, retry and discard messages that Everyrun could not process."""

from __future__ import annotations

import json
import sys
from collections import Counter
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
from everyrun.cli.doubt import user_name

quarantine_app = typer.Typer(
    no_args_is_help=True,
    help="List, retry or discard messages that Everyrun could not process.\n\nExample: everyrun quarantine list",
)

#: Maximum number of messages that one request retries or discards.
_PER_REQUEST = 100
Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SOURCE]...", help="Messages, by the column source of everyrun quarantine list."),
]
Reason = Annotated[str | None, typer.Option(help="Only messages whose reason in the list contains this text.")]
Topic = Annotated[str | None, typer.Option(help="Only messages of this topic. For received webhooks, write: webhook")]
Why = Annotated[str, typer.Option(help="Reason for your decision, stored with it.")]


@quarantine_app.command("list")
def list_(
    state: Annotated[
        Literal["OPEN", "RETRIED", "DISCARDED", "all"], typer.Option(help="Only messages in this state.")
    ] = "OPEN",
    reason: Reason = None,
    topic: Topic = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List quarantined messages.

    If there are several reasons, and you select neither by reason nor by topic, the command first shows the number of
    messages for each reason.

    Example: everyrun quarantine list --reason "not a workflow run"
    """
    wanted_state = None if state == "all" else state
    with Client(find(data_dir)) as client:
        reasons = client.get(f"{client.target.query_url}/v1/quarantine/reasons", state=wanted_state)["reasons"]
        rows = list(islice(messages(client, wanted_state, reason, topic), None if as_json else SHOWN + 1))
    if as_json:
        typer.echo(json.dumps({"reasons": reasons, "messages": rows}, indent=2))
        return
    if not rows:
        err.print("No quarantined message matches.")
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
        err.print(f"The first {SHOWN} are shown. Select fewer with --reason and --topic, or write all with --json")


def messages(client: Client, state: str | None, reason: str | None, topic: str | None) -> Iterator[dict[str, Any]]:
    """Yield the selected messages, fetched page by page."""
    url = f"{client.target.query_url}/v1/quarantine"
    return client.every(url, "messages", state=state, reason=reason, topic=topic, limit=1000)


@quarantine_app.command()
def show(
    source: Annotated[str, typer.Argument(help="Message, by the column source of everyrun quarantine list.")],
    raw: Annotated[bool, typer.Option("--raw", help="Write only the bytes of the message.")] = False,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show a message: reason, headers, bytes and past decisions.

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
        out.print(f"{'header':<10} (the signature and headers with secrets are not stored)", soft_wrap=True)
    for decision in message["decisions"]:
        text = f"{decision['decided_at']} {decision['kind']} by {decision['decided_by']}: {decision['reason']}"
        out.print(f"{'decision':<10} {escape(text)}", soft_wrap=True)
    content = message["text"]
    if content is None:
        content = f"(not text; to write the bytes, add --raw) {message['raw'][:400]}"
    out.print(escape(content[:4000]), soft_wrap=True)


@quarantine_app.command()
def retry(
    sources: Sources = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Select every open message.")] = False,
    why: Why = "",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Retry messages: process them with the current rules.

    Do this after an upgrade, for example. Everyrun publishes the events of the messages that it can process now. The
    other messages stay in the quarantine. Retrying a message twice is harmless, because its events have the same ids
    both times.

    Exit code 1: a message stays in the quarantine, or does not exist.

    Example: everyrun quarantine retry --reason "not a workflow run" --why "upgraded to 0.2"
    """
    outcomes = _decide("retry", sources, reason, topic, everything, why, data_dir)
    if outcomes["not-understood"] or outcomes["unknown"]:
        raise typer.Exit(exits.ERROR)


@quarantine_app.command()
def discard(
    sources: Sources = None,
    reason: Reason = None,
    topic: Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Select every open message.")] = False,
    why: Why = "",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Discard messages, so that they no longer count as open.

    The messages are not deleted: everyrun quarantine list --state DISCARDED still shows them.

    Example: everyrun quarantine discard webhook/3f2a... --why "a test webhook"
    """
    _require_one_selection(sources, reason, topic, everything)
    if not why:
        if not sys.stdin.isatty():
            fail("the reason is missing: give it with --why. It is kept with the decision", exits.USAGE)
        why = typer.prompt("Why", err=True)
    outcomes = _decide("discard", sources, reason, topic, everything, why, data_dir)
    if outcomes["unknown"]:
        raise typer.Exit(exits.NOT_FOUND)


def _require_one_selection(
    sources: Sequence[str] | None, reason: str | None, topic: str | None, everything: bool
) -> None:
    """End the command unless exactly one way to select messages is used."""
    if bool(sources) + bool(reason or topic) + everything != 1:
        fail("select messages in one way: by SOURCE, by --reason or --topic (or both), or by --all", exits.USAGE)


def _decide(
    decision: str,
    sources: Sequence[str] | None,
    reason: str | None,
    topic: str | None,
    everything: bool,
    why: str,
    data_dir: Path,
) -> Counter[str]:
    """Apply a decision to the selected messages, and return the number of messages for each outcome."""
    _require_one_selection(sources, reason, topic, everything)
    outcomes: Counter[str] = Counter()
    with Client(find(data_dir)) as client:
        selected = list(sources or (row["source"] for row in messages(client, "OPEN", reason, topic)))
        if not selected:
            err.print("No open message in the quarantine matches.")
        for start in range(0, len(selected), _PER_REQUEST):
            body = {"sources": selected[start : start + _PER_REQUEST], "reason": why, "by": user_name()}
            answer = client.answer("POST", f"{client.target.submission_url}/v1/quarantine/{decision}", json=body)
            for line in answer["decided"]:
                outcomes[line["outcome"]] += 1
                out.print(f"{line['outcome']:<15} {escape(line['source'])}  {escape(line['detail'])}", soft_wrap=True)
    err.print(", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())))
    return outcomes
