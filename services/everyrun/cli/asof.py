"""``everyrun as-of``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli import exits
from everyrun.cli.client import DataDir
from everyrun.cli.console import err, fail, out
from everyrun.cli.direct import settings_of
from everyrun.cli.rebuild import PANEL, counted, moment_of, run

if TYPE_CHECKING:
    from everyrun.replay.asof import AsOf


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("as-of", rich_help_panel=PANEL)(as_of)


def as_of(
    when: Annotated[str, typer.Argument(metavar="TIME|OFFSETS", help="A time, or batches:0=12,runs:0=400,...")],
    what: Annotated[Literal["report", "results", "row"], typer.Argument(help="What to show.")],
    of: Annotated[str, typer.Argument(metavar="ID", help="A submission; for row an input id.")],
    format_: Annotated[Literal["table", "jsonl"], typer.Option("--format", help="How to write results.")] = "table",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show a report, the results or a row as the log had them at a moment.

    What counts is when Everyrun was told, by the broker's clock; not when it happened at Extend.

    The tables of that moment are made from the log, in the schema everyrun_as_of. They stay there, so that a further
    question of the same moment, or of a later one, is answered sooner; the schema may be dropped.

    Example: everyrun as-of 2026-03-03T12:00:00Z row sub_01k...:invoice-7
    """
    from everyrun.replay import moment
    from everyrun.replay.asof import as_of as tables

    chosen = moment_of(when, "TIME|OFFSETS")
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")

    async def work() -> tuple[list[dict[str, Any]], str]:
        with counted("as of") as tell:
            async with tables(settings, chosen, tell) as found:
                return await _ask(found, what, of), moment.text(found.offsets)

    rows, offsets = run(work())
    err.print(f"As of {escape(when)}, the log up to: {offsets or 'nothing'}", soft_wrap=True)
    if not rows:
        fail(f"at that moment the log had nothing of {of}", exits.NOT_FOUND)
    if what != "results":
        typer.echo(json.dumps(rows[0], ensure_ascii=False, indent=2))
    elif format_ == "jsonl":
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        _table(rows)


async def _ask(found: AsOf, what: str, of: str) -> list[dict[str, Any]]:
    if what == "results":
        return [row async for row in found.results(of)]
    row = await (found.report(of) if what == "report" else found.row(of))
    return [] if row is None else [row]


def _table(rows: list[dict[str, Any]]) -> None:
    table = Table(Column("id", overflow="fold"), "status", Column("run", overflow="fold"), "settled at", "reason")
    for row in rows:
        settled = (row["settled_at"] or "")[:16].replace("T", " ")
        reason = row["failure_reason"] or ""
        table.add_row(escape(row["external_id"]), row["status"], row["run_id"] or "", settled, escape(reason))
    out.print(table)
