"""``everyrun audit``: compare the result tables with the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import settings_of
from everyrun.cli.console import counted, err, folding, out, print_table
from everyrun.cli.rebuild import rebuild_progress, run_resumable, time_from

if TYPE_CHECKING:
    from everyrun.replay.audit.row_diff import Difference
    from everyrun.replay.audit.table_audit import AuditResult

#: Exit codes of this command: 1 if something differs, 2 if the audit could not run.
_DIFFERENCES, _COULD_NOT_RUN = 1, 2
#: Maximum length of a value in the table, in characters.
_MAX_LENGTH = 60


def audit(
    batch: Annotated[str | None, typer.Option(metavar="BATCH", help="Compare only rows of this batch.")] = None,
    submission: Annotated[
        str | None, typer.Option(metavar="SUBMISSION", help="Compare only rows of this submission.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Compare only rows that contain a time at or after this one.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Compare only rows that contain a time before this one.")
    ] = None,
    format_: Annotated[
        Literal["table", "jsonl"], typer.Option("--format", help="Output format of the differences.")
    ] = "table",
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Compare the result tables with the log, row by row.

    In a separate schema, the command rebuilds the tables from the log, up to exactly the offsets that the live tables
    have reached. It then compares every row, or the rows that you select. It also checks the log for gaps in offsets,
    repeated event ids, and events whose cause is missing. It changes no live table.

    Exit codes: 0 everything agrees; 1 something differs; 2 the audit could not run.

    Example: everyrun audit --submission sub_01k... --format jsonl > differences.jsonl
    """
    from everyrun.replay.audit.compare import RowSelection
    from everyrun.replay.audit.table_audit import audit as audit_tables

    selection = RowSelection(batch, submission, time_from(since, "--since"), time_from(until, "--until"))
    settings = settings_of(data_dir, "kafka_bootstrap", "postgres_dsn")
    with rebuild_progress("audit") as on_progress:
        on_difference = _write_difference if format_ == "jsonl" else lambda _: None
        result = run_resumable(audit_tables(settings, on_progress, selection, on_difference), _COULD_NOT_RUN)
    (_write_table if format_ == "table" else _write_findings)(result)
    err.print(
        f"Compared {counted(result.records, 'record')} with {counted(sum(result.rows.values()), 'row')} in "
        f"{counted(len(result.rows), 'table')}: {counted(result.differences_total, 'difference')}, "
        f"{counted(len(result.findings), 'finding')} in the log."
    )
    if not result.agrees:
        raise typer.Exit(_DIFFERENCES)


def _write_difference(d: Difference) -> None:
    row = {"table": d.table, "key": d.key, "column": d.column, "live": d.live, "log": d.log}
    typer.echo(json.dumps(row, ensure_ascii=False))


def _write_findings(result: AuditResult) -> None:
    for finding in result.findings:
        typer.echo(json.dumps({"finding": finding.what, "where": finding.where}, ensure_ascii=False))


def _write_table(result: AuditResult) -> None:
    if result.differences:
        table = Table("table", "key", "column", folding("live"), folding("log"))
        for d in result.differences:
            table.add_row(d.table, escape(d.key), escape(d.column), _shorten(d.live), _shorten(d.log))
        print_table(table)
        if (more := result.differences_total - len(result.differences)) > 0:
            out.print(f"{more:,} more differences. To write all of them, add: --format jsonl")
    for finding in result.findings:
        out.print(f"[yellow]{escape(finding.what)}[/]: {escape(finding.where)}", soft_wrap=True)


def _shorten(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 1] + "…")
