"""``everyrun as-of``."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import settings_of
from everyrun.cli.console import SHOWN, err, fail, folding, print_table
from everyrun.cli.rebuild import counted, moment_of, run

if TYPE_CHECKING:
    from everyrun.replay.audit.as_of import AsOf


def as_of(
    when: Annotated[
        str,
        typer.Argument(
            metavar="TIME|OFFSETS", help="A time with its zone, so long ago (-5m), or batches:0=12,runs:0=400,..."
        ),
    ],
    what: Annotated[Literal["report", "results", "row"], typer.Argument(help="What to show.")],
    of: Annotated[str, typer.Argument(metavar="ID", help="A submission; for row an input id.")],
    format_: Annotated[
        Literal["table", "csv", "jsonl"], typer.Option("--format", help="How to write results.")
    ] = "table",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show a report, the results or a row as the log had them at a given time.

    What counts is when Everyrun was told, by the broker's clock; not when it happened at Extend.

    The tables of that moment are made from the log, in the schema everyrun_as_of. They stay there, so that a further
    question of the same moment, or of a later one, is answered sooner; the schema may be dropped.

    A time is written 2026-03-03T12:00:00Z, '2026-03-03 12:00 Europe/Berlin', 'yesterday 12:00 Europe/Berlin', or
    -5m, -1h30m, -2d for so long ago. A time without a zone is refused.

    Example: everyrun as-of 2026-03-03T12:00:00Z row sub_01k...:invoice-7
    """
    from everyrun.replay import log_position
    from everyrun.replay.audit.as_of import as_of as tables

    chosen = moment_of(when, "TIME|OFFSETS")
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")

    async def work() -> bool:
        async with AsyncExitStack() as stack:
            # The bar ends before anything is written: it would take standard output for itself.
            with counted("as of") as tell:
                found = await stack.enter_async_context(tables(settings, chosen, tell))
            offsets = log_position.format_offsets(found.offsets) or "nothing"
            err.print(f"As of {escape(when)}, the log up to: {offsets}", soft_wrap=True)
            return await _show(found, what, of, format_)

    if not run(work()):
        fail(f"at that moment the log had nothing of {of}", exits.NOT_FOUND)


async def _show(found: AsOf, what: str, of: str, format_: str) -> bool:
    """Write what is asked for, lines as they come; whether there was any."""
    if what == "results":
        # Closed before its connection is, also where a table ends early.
        async with aclosing(cast("AsyncGenerator[dict[str, Any]]", found.results(of))) as rows:
            return await {"jsonl": _jsonl, "csv": _csv, "table": _table}[format_](rows)
    row = await (found.report(of) if what == "report" else found.row(of))
    if row is not None:
        typer.echo(json.dumps(row, ensure_ascii=False, indent=2))
    return row is not None


async def _jsonl(rows: AsyncIterator[dict[str, Any]]) -> bool:
    any_ = False
    async for row in rows:
        any_ = True
        typer.echo(json.dumps(row, ensure_ascii=False))
    return any_


async def _csv(rows: AsyncIterator[dict[str, Any]]) -> bool:
    """Write the columns of ``everyrun results --format csv``."""
    from everyrun.cli.results import CSV_COLUMNS, csv_row
    from everyrun.submission.intake.columns import csv_line

    any_ = False
    async for row in rows:
        if not any_:
            typer.echo(csv_line(CSV_COLUMNS), nl=False)
        any_ = True
        typer.echo(csv_line(csv_row(row)), nl=False)
    return any_


async def _table(rows: AsyncIterator[dict[str, Any]]) -> bool:
    table = Table("id", "status", "run", "settled at", folding("reason"))
    count = 0
    async for row in rows:
        count += 1
        if count > SHOWN:
            break
        settled = (row["settled_at"] or "")[:16].replace("T", " ")
        texts = (row["external_id"], row["status"], row["run_id"] or "", settled, row["failure_reason"] or "")
        table.add_row(*map(escape, texts))
    if count:
        print_table(table)
    if count > SHOWN:
        err.print(f"The first {SHOWN} are shown; write all with --format csv or jsonl")
    return count > 0
