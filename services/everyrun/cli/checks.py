"""Check what is to be submitted, and show what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec
import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli import exits, folder, manifest
from everyrun.cli.console import err, fail, folding, print_table
from everyrun.cli.folder import shown
from everyrun.submission.intake.columns import Options

#: Names that stand for all of their kind in the summary.
_NAMES = 3


def sendable(**arguments: str | None) -> None:
    """End the command if an argument cannot be sent in an address or a head."""
    for name, value in arguments.items():
        if value is not None and not (value.isascii() and value.isprintable() and value.strip() == value and value):
            option = name.replace("_", "-")
            fail(f"--{option}: {shown(value)!r} is no such value: letters, digits and marks of ASCII", exits.USAGE)


def read_options(
    id_column: str | None, url_column: str | None, metadata_columns: str, delimiter: str | None, encoding: str | None
) -> Options:
    """Return the options of the command line. Raises ManifestError."""
    columns = tuple(name.strip() for name in metadata_columns.split(",") if name.strip())
    return Options(encoding or None, manifest.delimiter(delimiter), id_column, url_column, columns, local=True)


def read_manifest(source: str, options: Options, file: IO[bytes], local: bool = True) -> manifest.Checked:
    """Check a manifest and say what was found; ends the command if a row is bad. Raises ManifestError."""
    found = manifest.read(source, options, file, local)
    checked = found.checked
    _refuse_bad(checked)
    if not checked.count:
        fail(f"{shown(source)} has no rows")
    text = f"{shown(Path(source).name)}: {checked.count} rows"
    if found.ignored is not None:
        ids = f"from the column {found.ids_from}" if found.ids_from else "the rows' numbers (else: --id-column NAME)"
        text += f"; ids are {ids}"
    err.print(escape(text), soft_wrap=True)
    if found.ignored:
        names = ", ".join(found.ignored)
        listed = ",".join(found.ignored)
        text = f"Left out: the columns {names}. To keep them as metadata: --metadata-columns '{listed}', or '*'"
        err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    return checked


def read_folder(
    source: str, include: Sequence[str], exclude: Sequence[str], skip_unreadable: bool, every: bool, file: IO[bytes]
) -> manifest.Checked:
    """Check the documents in a folder and say what was found; ends the command if nothing can be sent."""
    try:
        found = folder.find(Path(source), include, exclude)
    except folder.PatternError as error:
        fail(str(error), exits.USAGE)
    if skip_unreadable:
        found.leave_out_broken()
    count = len(found.documents)
    total = count + found.skipped_count + len(found.broken)
    text = f"Found {total} files: {count} to send, {found.skipped_count} left out"
    err.print(text + (f", {len(found.broken)} that cannot be read" if found.broken else ""), soft_wrap=True)
    for reason, names in sorted(found.skipped.items(), key=lambda item: -len(item[1])):
        err.print(escape(f"  {len(names)} {reason}: {_some(names, every)}"), soft_wrap=True)
    if found.skipped and not every and any(len(names) > _NAMES for names in found.skipped.values()):
        err.print("  To name all of them: --list-skipped")
    if found.broken:
        show_files(found.broken)
        fail("nothing was sent: some of it cannot be read. Mend that, or leave it out with --skip-unreadable")
    if not count:
        fail(f"{shown(source)} has no file that Extend takes")
    checked = manifest.check_documents(found.documents, file)
    _refuse_bad(checked)
    return checked


def _some(names: list[str], every: bool) -> str:
    if every or len(names) <= _NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} more"


def show_files(files: Sequence[tuple[str, str]]) -> None:
    """Show the first files, each with what is wrong with it."""
    for name, why in files[: manifest.SHOWN]:
        err.print(escape(f"  {name}: {why}"), soft_wrap=True)
    if len(files) > manifest.SHOWN:
        err.print(f"  and {len(files) - manifest.SHOWN} more")


def fail_on(error: manifest.ManifestError) -> NoReturn:
    """End the command; the bad rows before what ended the reading are shown too."""
    if error.checked and error.checked.bad_count:
        show_bad_rows(error.checked.bad_count, [msgspec.to_builtins(row) for row in error.checked.bad])
    fail(str(error))


def _refuse_bad(checked: manifest.Checked) -> None:
    if checked.bad_count:
        show_bad_rows(checked.bad_count, [msgspec.to_builtins(row) for row in checked.bad])
        raise typer.Exit(exits.ERROR)


def show_bad_rows(count: int, rows: list[dict[str, Any]]) -> None:
    """Show what is wrong with which row and field."""
    shown_rows = rows[: manifest.SHOWN]
    with_lines = any(row.get("line") for row in shown_rows)
    columns: list[str | Column] = ["row", *(["line"] if with_lines else []), "id", "field", folding("what is wrong")]
    table = Table(*columns, title=f"{count} bad rows; nothing was handed in")
    for row in shown_rows:
        line = [str(row.get("line") or "")] if with_lines else []
        texts = (row["id"] or "", row["field"], row["reason"])
        table.add_row(str(row["row"]), *line, *(escape(_printable(text)) for text in texts))
    print_table(table, err)
    if count > len(shown_rows):
        err.print(f"and {count - len(shown_rows)} more")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
