"""``everyrun notify``: send Extend's and Everyrun's events on to other services (receivers), and look after that."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Json
from everyrun.cli.client import Client, find
from everyrun.cli.console import SHOWN, counted, err, fail, folding, out, print_table
from everyrun.cli.doubt import user_name
from everyrun.cli.token import parse_lifetime

notify_app = typer.Typer(
    no_args_is_help=True,
    help="Send Extend's and Everyrun's events on to other services by HTTP.\n\n"
    "Example: everyrun notify add https://app.example.com/hooks --events 'workflow_run.*'",
)

Receiver = Annotated[str, typer.Argument(metavar="RECEIVER", help="Id of the receiver (rcv_...).")]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        help="File with a secret that the receiver has already; - for standard input. Default: a new one.",
        allow_dash=True,
    ),
]
State = Literal["waiting", "delivered", "given_up"]


class _Notifier:
    """The notifier's API. A failure ends the command with a message."""

    def __init__(self, data_dir: Path) -> None:
        target = find(data_dir)
        if not target.notifier_url:
            fail("EVERYRUN_NOTIFIER_URL is not set; set it to the URL of the notifier", exits.NOT_FOUND)
        self._client = Client(target)
        self._url = f"{target.notifier_url}/v1/receivers"

    def get(self, path: str = "", **query: Any) -> dict[str, Any]:
        with self._client as client:
            return client.get(self._url + path, **query)

    def send(self, method: str, path: str = "", body: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        with self._client as client:
            return client.answer(method, self._url + path, json=body, params=query)

    def deliveries(self, receiver: str, limit: int | None, **query: Any) -> list[dict[str, Any]]:
        with self._client as client:
            rows = client.every(f"{self._url}/{receiver}/deliveries", "deliveries", limit=1000, **query)
            return list(islice(rows, limit))


def _secret(path: Path | None) -> str | None:
    """Return the secret in a file, or None if there is no file. Ends the command if it cannot be read."""
    if path is None:
        return None
    try:
        return (sys.stdin.read() if str(path) == "-" else path.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read the secret from {path}: {getattr(error, 'strerror', None) or error}", exits.USAGE)


@notify_app.command()
def add(
    url: Annotated[str, typer.Argument(help="Address (https://...) to which events are posted.")],
    events: Annotated[list[str], typer.Option(help="Events: names or patterns, separated by commas; can be repeated.")],
    workflow: Annotated[list[str] | None, typer.Option(help="Only events of this workflow; can be repeated.")] = None,
    description: Annotated[str, typer.Option(help="Purpose of the receiver.")] = "",
    secret_file: SecretFile = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Add a receiver, and print its signing secret.

    It gets the events that happen from now on. Extend's events (workflow_run.completed, .failed, .needs_review,
    .rejected, .cancelled) come in Extend's format, so Extend's SDK verifies them. Everyrun's own events
    (submission-settled, batch-in-doubt, workflow-paused, quarantined) come as Standard Webhooks.

    Example: everyrun notify add https://app.example.com/hooks --events 'workflow_run.*'
    """
    names = [name.strip() for given in events for name in given.split(",") if name.strip()]
    body = {"url": url, "events": names, "workflows": workflow or [], "description": description, "by": user_name()}
    added = _Notifier(data_dir).send("POST", body={**body, "secret": _secret(secret_file)})
    if as_json:
        typer.echo(json.dumps(added, indent=2))
        return
    receiver = added["receiver"]
    gets = ", ".join(receiver["events"])
    err.print(f"Added {receiver['receiver_id']}, which gets {escape(gets)}.", soft_wrap=True)
    err.print(f"To test it, run: everyrun notify test {receiver['receiver_id']}", soft_wrap=True)
    err.print("Its signing secret cannot be shown again:")
    typer.echo(added["secret"])


@notify_app.command("list")
def list_(as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """List receivers with the numbers of their deliveries.

    Example: everyrun notify list
    """
    rows = _Notifier(data_dir).get()["receivers"]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        err.print("There are no receivers. To add one, run: everyrun notify add URL --events EVENTS")
        return
    numbers = [Column(name, justify="right") for name in ("waiting", "delivered", "given up")]
    table = Table("receiver", "state", *numbers, folding("url"), folding("events"), folding("last error"))
    for row in rows:
        figures = (str(row[name]) for name in ("waiting", "delivered", "given_up"))
        texts = (escape(row["url"]), escape(", ".join(row["events"])), escape(row["last_error"] or ""))
        table.add_row(row["receiver_id"], _state(row), *figures, *texts)
    print_table(table)


def _state(row: dict[str, Any]) -> str:
    return "failing" if row["state"] == "active" and row["failures"] else str(row["state"])


@notify_app.command()
def show(receiver: Receiver, as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """Show a receiver: its address, its events, and how its deliveries go.

    Example: everyrun notify show rcv_0123456789abcdef0123
    """
    _show(_Notifier(data_dir).get(f"/{receiver}"), as_json)


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    for name, value in {**row, "state": _state(row)}.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if text not in (None, ""):
            out.print(f"{name.replace('_', ' '):<15} {escape(str(text))}", soft_wrap=True)


@notify_app.command()
def pause(receiver: Receiver, data_dir: DataDir = Path(".everyrun")) -> None:
    """Pause a receiver: its events wait.

    Events that wait longer than EVERYRUN_NOTIFY_RETRY_FOR are given up.

    Example: everyrun notify pause rcv_0123456789abcdef0123
    """
    row = _Notifier(data_dir).send("POST", f"/{receiver}/pause", by=user_name())
    err.print(f"Paused. {counted(row['waiting'], 'delivery waits', 'deliveries wait')}.")


@notify_app.command()
def resume(receiver: Receiver, data_dir: DataDir = Path(".everyrun")) -> None:
    """Resume a receiver, and send what waits.

    A receiver that failed gets the next request at once.

    Example: everyrun notify resume rcv_0123456789abcdef0123
    """
    row = _Notifier(data_dir).send("POST", f"/{receiver}/resume", by=user_name())
    err.print(f"Resumed. {counted(row['waiting'], 'delivery waits', 'deliveries wait')}.")


@notify_app.command()
def remove(receiver: Receiver, data_dir: DataDir = Path(".everyrun")) -> None:
    """Remove a receiver. Its waiting events are not sent.

    Example: everyrun notify remove rcv_0123456789abcdef0123
    """
    row = _Notifier(data_dir).send("DELETE", f"/{receiver}", by=user_name())
    err.print(f"Removed. {counted(row['waiting'], 'waiting delivery', 'waiting deliveries')} will not be sent.")


@notify_app.command()
def rotate(
    receiver: Receiver,
    overlap: Annotated[
        str, typer.Option(help="Time for which the old secret stays valid: 24h, 7d, 30m, or none.")
    ] = "24h",
    secret_file: SecretFile = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Change the signing secret of a receiver, and print the new one.

    During the overlap, Everyrun's own events have a signature of each secret. Extend's format has room for one: the
    old secret signs until the overlap ends, so let the receiver accept both before.

    Example: everyrun notify rotate rcv_0123456789abcdef0123 --overlap 24h
    """
    lifetime = None if overlap == "none" else parse_lifetime(overlap, "--overlap")
    seconds = lifetime.total_seconds() if lifetime is not None else 0.0
    body = {"overlap_seconds": seconds, "secret": _secret(secret_file)}
    rotated = _Notifier(data_dir).send("POST", f"/{receiver}/rotate", body, by=user_name())
    if as_json:
        typer.echo(json.dumps(rotated, indent=2))
        return
    until = rotated["previous_until"]
    valid = f"is valid until {until[:16].replace('T', ' ')} UTC" if until else "is not valid any more"
    err.print(f"The old secret {valid}. The new one cannot be shown again:")
    typer.echo(rotated["secret"])


@notify_app.command()
def deliveries(
    receiver: Receiver,
    state: Annotated[State | None, typer.Option(help="Only deliveries in this state.")] = None,
    event: Annotated[str | None, typer.Option(help="Only deliveries of this event.")] = None,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """List the deliveries of a receiver, newest first.

    With --json, each delivery has its last 20 tries, with the first 200 characters of the receiver's answers.

    Example: everyrun notify deliveries rcv_0123456789abcdef0123 --state given_up
    """
    rows = _Notifier(data_dir).deliveries(receiver, None if as_json else SHOWN + 1, state=state, event=event)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        err.print("No delivery matches.")
        return
    columns = ("id", "event", "subject", "state", Column("tries", justify="right"), "event read", folding("last try"))
    table = Table(*columns)
    for row in rows[:SHOWN]:
        read = row["created_at"][:19].replace("T", " ")
        texts = (row["notification_id"], row["event"], escape(row["subject"]), row["state"], str(row["attempts"]), read)
        table.add_row(*texts, escape(_said(row["tries"])))
    print_table(table)
    if len(rows) > SHOWN:
        err.print(f"The newest {SHOWN} are shown. Select fewer with --state and --event, or write all with --json")


def _said(tries: Sequence[dict[str, Any]]) -> str:
    if not tries:
        return ""
    last = tries[-1]
    if last["status"] is None:
        return str(last["error"])
    return f"{last['status']} {last['answer']}".strip()


@notify_app.command()
def resend(
    receiver: Receiver,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of deliveries (ntf_...).")] = None,
    state: Annotated[
        Literal["given_up", "delivered", "all"] | None, typer.Option(help="All deliveries in this state.")
    ] = None,
    since: Annotated[str, typer.Option(help="With --state: only events of this last time, such as 2d.")] = "1h",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Resend deliveries, with the same ids and a fresh signature.

    Example: everyrun notify resend rcv_0123456789abcdef0123 --state given_up --since 3d
    """
    if bool(ids) == (state is not None):
        raise typer.BadParameter("give either ids of deliveries or --state", param_hint="ID")
    if state is None:
        body: dict[str, Any] = {"notification_ids": ids}
    else:
        body = {"state": state, "since_seconds": parse_lifetime(since, "--since").total_seconds()}
    answer = _Notifier(data_dir).send("POST", f"/{receiver}/resend", body)
    err.print(f"{counted(answer['resent'], 'delivery is', 'deliveries are')} sent again.")
    if answer["unknown"]:
        fail(f"there is no delivery to this receiver with the id {', '.join(answer['unknown'])}", exits.NOT_FOUND)


@notify_app.command("test")
def send_test(receiver: Receiver, as_json: Json = False, data_dir: DataDir = Path(".everyrun")) -> None:
    """Send a test event, and show the receiver's answer.

    The event has the type everyrun.test. It is sent once, even to a paused receiver, and is not in the list of
    deliveries.

    Example: everyrun notify test rcv_0123456789abcdef0123
    """
    answer = _Notifier(data_dir).send("POST", f"/{receiver}/test")
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    elif answer["accepted"]:
        err.print(f"Accepted: {answer['status']} after {answer['seconds']:.2f} s {escape(answer['answer'])}".strip())
    if not answer["accepted"]:
        said = f"it answered {answer['status']} {answer['answer']}".strip() if answer["status"] else answer["error"]
        fail(f"the receiver did not accept the test event: {said}")
