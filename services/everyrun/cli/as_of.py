"""``everyrun as-of``: show what the result tables contained at an earlier time."""

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
from everyrun.cli.rebuild import position_from, rebuild_progress, run_resumable

if TYPE_CHECKING:
    from everyrun.replay.audit.as_of import AsOf


def as_of(
    when: Annotated[
        str,
        typer.Argument(
            metavar="TIME|OFFSETS",
            help="A time with a time zone, an age (-5m), or the first offsets to leave out: "
            "batches:0=12,runs:0=400,...",
        ),
    ],
    view: Annotated[Literal["report", "results", "row"], typer.Argument(help="View to show.")],
    identifier: Annotated[
        str, typer.Argument(metavar="ID", help="An input id to show a row, otherwise a submission id.")
    ],
    format_: Annotated[
        Literal["table", "csv", "jsonl"], typer.Option("--format", help="Output format for results.")
    ] = "table",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show a report, the results or a row as of an earlier time.

    An event counts from the time when Kafka appended it to the log, not from the time when it happened at Extend.
    Write the time as 2026-03-03T12:00:00Z, '2026-03-03 12:00 Europe/Berlin', 'yesterday 12:00 Europe/Berlin', or as an
    age: -5m, -1h30m, -2d. A time must name its time zone.

    The command rebuilds the tables from the log, as they were at that time. It writes them to the schema
    everyrun_as_of and keeps them there: the next command about the same or a later time is then faster. You may drop
    the schema.

    Example: everyrun as-of 2026-03-03T12:00:00Z row sub_01k...:invoice-7
    """
    from everyrun.replay import log_position
    from everyrun.replay.audit.as_of import as_of as open_tables

    position = position_from(when, "TIME|OFFSETS")
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")

    async def work() -> bool:
        async with AsyncExitStack() as stack:
            # While the progress bar is shown, it controls standard output, so it must end before anything is written.
            with rebuild_progress("as of") as on_progress:
                tables = await stack.enter_async_context(open_tables(settings, position, on_progress))
            offsets = log_position.format_offsets(tables.offsets) or "nothing"
            err.print(f"As of {escape(when)}, with the log up to: {offsets}", soft_wrap=True)
            return await _show(tables, view, identifier, format_)

    if not run_resumable(work()):
        fail(f"at that time the log had nothing about {identifier}", exits.NOT_FOUND)


async def _show(tables: AsOf, view: str, identifier: str, format_: str) -> bool:
    """Write what ``view`` names. Return False if there is nothing to show.

    Results are written one by one, as soon as each is read.
    """
    if view == "results":
        # _write_table may stop before the last row. Close the rows explicitly, because they must be closed before the
        # database connection that they are read from.
        async with aclosing(cast("AsyncGenerator[dict[str, Any]]", tables.results(identifier))) as rows:
            return await {"jsonl": _write_lines, "csv": _write_csv, "table": _write_table}[format_](rows)
    row = await (tables.report(identifier) if view == "report" else tables.row(identifier))
    if row is not None:
        typer.echo(json.dumps(row, ensure_ascii=False, indent=2))
    return row is not None


async def _write_lines(rows: AsyncIterator[dict[str, Any]]) -> bool:
    found = False
    async for row in rows:
        found = True
        typer.echo(json.dumps(row, ensure_ascii=False))
    return found


async def _write_csv(rows: AsyncIterator[dict[str, Any]]) -> bool:
    """Write the same columns as ``everyrun results --format csv``."""
    from everyrun.cli.results import CSV_COLUMNS, csv_row
    from everyrun.submission.intake.columns import csv_line

    found = False
    async for row in rows:
        if not found:
            typer.echo(csv_line(CSV_COLUMNS), nl=False)
        found = True
        typer.echo(csv_line(csv_row(row)), nl=False)
    return found


async def _write_table(rows: AsyncIterator[dict[str, Any]]) -> bool:
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
        err.print(f"The first {SHOWN} are shown. To write all of them, add --format csv or --format jsonl")
    return count > 0
