"""``everyrun audit``."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import settings_of
from everyrun.cli.console import err, folding, out, print_table
from everyrun.cli.rebuild import counted, run

if TYPE_CHECKING:
    from everyrun.replay.audit.row_diff import Difference
    from everyrun.replay.audit.table_audit import AuditResult

_DIFFERENCES, _COULD_NOT_RUN = 1, 2
_WIDE = 60


def audit(
    batch: Annotated[str | None, typer.Option(metavar="BATCH", help="Only what belongs to this batch.")] = None,
    submission: Annotated[
        str | None, typer.Option(metavar="SUBMISSION", help="Only what belongs to this submission.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only rows with a time from here on.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only rows with a time before this.")] = None,
    format_: Annotated[Literal["table", "jsonl"], typer.Option("--format", help="How to write differences.")] = "table",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Compare the result tables with the log, row by row.

    Makes the tables anew from the log in a schema of their own, up to exactly the offsets of the live ones; without a
    selection everything is compared. Changes nothing. Also looks for gaps in the offsets, for event ids used twice,
    and for events without the one they follow from.

    Ends with 0 where all agrees, 1 where anything differs, 2 where it could not be done.

    Example: everyrun audit --submission sub_01k... --format jsonl > differences.jsonl
    """
    from everyrun.replay.audit.compare import RowSelection
    from everyrun.replay.audit.table_audit import audit as compare

    chosen = RowSelection(batch, submission, _time(since, "--since"), _time(until, "--until"))
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")
    with counted("audit") as tell:
        note = _as_line if format_ == "jsonl" else lambda _: None
        found = run(compare(settings, tell, chosen, note), _COULD_NOT_RUN)
    (_as_table if format_ == "table" else _as_lines)(found)
    err.print(
        f"{found.records} records, {sum(found.rows.values())} rows in {len(found.rows)} tables compared: "
        f"{_number(found.differences_total, 'difference')}, "
        f"{_number(len(found.findings), 'finding')} in the log."
    )
    if not found.agrees:
        raise typer.Exit(_DIFFERENCES)


def _number(count: int, of: str) -> str:
    return f"{count or 'no'} {of}{'' if count == 1 else 's'}"


def _time(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    from everyrun.replay.times import TimeError, parse_time

    try:
        return parse_time(text)
    except TimeError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _as_line(d: Difference) -> None:
    row = {"table": d.table, "key": d.key, "column": d.column, "live": d.live, "log": d.log}
    typer.echo(json.dumps(row, ensure_ascii=False))


def _as_lines(found: AuditResult) -> None:
    for finding in found.findings:
        typer.echo(json.dumps({"finding": finding.what, "where": finding.where}, ensure_ascii=False))


def _as_table(found: AuditResult) -> None:
    if found.differences:
        table = Table("table", "key", "column", folding("live"), folding("log"))
        for d in found.differences:
            table.add_row(d.table, escape(d.key), escape(d.column), _short(d.live), _short(d.log))
        print_table(table)
        if found.differences_total > len(found.differences):
            out.print(f"and {found.differences_total - len(found.differences):,} more: --format jsonl has all")
    for finding in found.findings:
        out.print(f"[yellow]{escape(finding.what)}[/]: {escape(finding.where)}", soft_wrap=True)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= _WIDE else text[: _WIDE - 1] + "…")
