"""Check a manifest or folder, and show what was found."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import msgspec
import typer
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli import exits, folder, manifest
from everyrun.cli.console import counted, err, fail, folding, print_table
from everyrun.cli.folder import shown
from everyrun.cli.patterns import PatternError, extension_of
from everyrun.submission.intake.columns import Options

if TYPE_CHECKING:
    from everyrun.cli.bucket import FoundObjects

#: Maximum number of names that the summary lists for each reason. With --list-skipped, it lists all.
_NAMES = 3


def sendable(**arguments: str | None) -> None:
    """End the command if an argument contains characters that cannot be sent in a URL or an HTTP header."""
    for name, value in arguments.items():
        if value is not None and not (value.isascii() and value.isprintable() and value.strip() == value and value):
            option = name.replace("_", "-")
            problem = "must consist of printable ASCII characters, without spaces around them"
            fail(f"--{option}: {shown(value)!r} {problem}", exits.USAGE)


def stdin_format(source: str, format_: str | None) -> None:
    """End the command unless ``--format`` is given exactly if the source is standard input, and names a format."""
    formats = ", ".join(manifest.FORMATS)
    if source == manifest.STDIN and format_ is None:
        fail(f"standard input needs --format: {formats}", exits.USAGE)
    if source != manifest.STDIN and format_ is not None:
        fail("--format is for standard input (-): a file's name says its format; leave it out", exits.USAGE)
    if format_ is not None and format_ not in manifest.FORMATS:
        fail(f"--format {shown(format_)!r}: must be one of {formats}", exits.USAGE)


def read_options(
    id_column: str | None,
    url_column: str | None,
    metadata_columns: Sequence[str],
    delimiter: str | None,
    encoding: str | None,
) -> Options:
    """Return the options for reading a manifest. Raises ManifestError.

    Each text in ``metadata_columns`` is a line of CSV that contains names of columns.
    """
    given = [name for names in metadata_columns for line in csv.reader([names], skipinitialspace=True) for name in line]
    columns = tuple(name.strip() for name in given if name.strip())
    return Options(encoding or None, manifest.delimiter(delimiter), id_column, url_column, columns, local=True)


def rules(retries: int, reasons: str | None, stop_after: str | None, inputs: int) -> dict[str, Any]:
    """Return the parameters of a submission for the rules about inputs that fail.

    ``stop_after`` is a number of inputs, or a share of ``inputs`` with a percent sign. Ends the command if it is not.
    """
    found: dict[str, Any] = {"retries": retries} if retries else {}
    if reasons:
        if not retries:
            fail("--retry-reasons needs --retries", exits.USAGE)
        found["retry_reason"] = [reason.strip() for reason in reasons.split(",") if reason.strip()]
    if stop_after is not None:
        text = stop_after.strip()
        share = text.endswith("%")
        try:
            number = float(text.removesuffix("%")) if share else int(text)
        except ValueError:
            number = -1
        if not 0 <= number <= (100 if share else 2_000_000_000):
            fail(f"--stop-after-failures {stop_after}: give a number of inputs, or a share such as 5%", exits.USAGE)
        found["stop_after_failures"] = int(inputs * number / 100) if share else number
    return found


def read_manifest(
    source: str, options: Options, file: IO[bytes], local: bool = True, format_: str | None = None
) -> manifest.Checked:
    """Check a manifest and show what was found. Ends the command if a row is bad. Raises ManifestError.

    ``format_`` is the format of standard input, if that is the source.
    """
    found = manifest.read(source, options, file, local, format_)
    checked = found.checked
    _refuse_bad(checked)
    if not checked.count:
        fail(f"{manifest.named(source)} has no rows")
    name = manifest.named(source) if source == manifest.STDIN else shown(Path(source).name)
    text = f"{name}: {counted(checked.count, 'row')}"
    if found.ignored is not None:
        ids = f"from the column {found.ids_from}" if found.ids_from else "the rows' numbers (else: --id-column NAME)"
        text += f"; ids are {ids}"
    err.print(escape(text), soft_wrap=True)
    if found.ignored:
        names = ", ".join(found.ignored)
        listed = shlex.quote(_line(found.ignored))
        text = f"Left out: the columns {names}. To keep them as metadata: --metadata-columns {listed}, or '*'"
        err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    for warning in found.warnings:
        err.print(f"[yellow]{escape(f'{name}: {warning}')}[/]", soft_wrap=True)
    return checked


def _line(names: Sequence[str]) -> str:
    written = io.StringIO()
    csv.writer(written).writerow(names)
    return written.getvalue().removesuffix("\r\n")


def read_folder(
    source: str, include: Sequence[str], exclude: Sequence[str], skip_unreadable: bool, every: bool, file: IO[bytes]
) -> manifest.Checked:
    """Check the documents in a folder and show what was found. Ends the command if nothing can be sent."""
    try:
        found = folder.find(Path(source), include, exclude)
    except PatternError as error:
        fail(str(error), exits.USAGE)
    if skip_unreadable:
        found.leave_out_broken()
    show_found("file", len(found.documents), found.skipped, every, len(found.broken))
    if found.broken:
        show_files(found.broken)
        fail("nothing was sent, because some files cannot be read. Fix that, or skip them with --skip-unreadable")
    if not found.documents:
        fail(f"{shown(source)} has no file to send: each is left out for the reason above")
    if same := folder.same_content(found.documents):
        copies = sum(map(len, same)) - len(same)
        groups = same if every else same[:_NAMES]
        listed = "; ".join(_some([document.shown for document in group], every) for group in groups)
        more = f"; and {len(same) - _NAMES} more groups" if len(same) > _NAMES and not every else ""
        text = f"{counted(copies, 'file has', 'files have')} the same content as another one, and will be sent too: "
        err.print(escape(f"  {text}{listed}{more}"), soft_wrap=True)
    checked = manifest.check_documents(found.documents, file)
    _refuse_bad(checked)
    return checked


def read_bucket(
    source: str, include: Sequence[str], exclude: Sequence[str], every: bool, file: IO[bytes]
) -> manifest.Checked:
    """Check the objects of a bucket and show what was found. Ends the command if nothing can be sent.

    Raises ManifestError.
    """
    try:
        found = list_bucket(source, include, exclude)
    except PatternError as error:
        fail(str(error), exits.USAGE)
    show_found("object", len(found.objects), found.skipped, every)
    if not found.objects:
        fail(f"{source} has no object to send: each is left out for the reason above")
    checked = manifest.check_objects(found.objects, file)
    _refuse_bad(checked)
    return checked


def list_bucket(
    source: str, include: Sequence[str], exclude: Sequence[str], empty_is_fine: bool = False
) -> FoundObjects:
    """List the objects of a bucket, with the number so far as progress. Raises ManifestError and PatternError."""
    from everyrun.cli import bucket

    with err.status("Listing") as status:

        def listed(count: int) -> None:
            status.update(f"Listing: {counted(count, 'object')}")

        return bucket.find(source, include, exclude, listed, empty_is_fine)


def show_found(what: str, count: int, skipped: Mapping[str, list[str]], every: bool, broken: int = 0) -> None:
    """Show how many files or objects were found, and what is left out, by reason."""
    left_out = sum(map(len, skipped.values()))
    text = f"Found {counted(count + left_out + broken, what)}: {count} to send, {left_out} left out"
    err.print(text + (f", {broken} that cannot be read" if broken else ""), soft_wrap=True)
    show_skipped(skipped, every)


def show_skipped(skipped: Mapping[str, list[str]], every: bool) -> None:
    """Show what is left out, by reason: all names if ``every`` is True, otherwise the first few."""
    for reason, names in sorted(skipped.items(), key=lambda item: -len(item[1])):
        err.print(escape(f"  {len(names)} {reason}: {_some(names, every)}"), soft_wrap=True)
    if not every and any(len(names) > _NAMES for names in skipped.values()):
        err.print("  To name all of them: --list-skipped")


def show_dry_run(checked: manifest.Checked, list_files: bool) -> None:
    """Show what would be submitted: the first row and the counts, and every local file if ``list_files`` is True."""
    if list_files:
        for file in checked.files:
            typer.echo(f"{extension_of(file.name) or '?'}\t{shown(file.path)}")
    if checked.first is not None:
        err.print(escape(f"The first row: {json.dumps(checked.first, ensure_ascii=False)}"), soft_wrap=True)
    batches, files = counted(checked.batches, "batch", "batches"), counted(len(checked.files), "file")
    err.print(
        f"{counted(checked.count, 'input')} in {batches}, {files} to upload; every row is valid. Nothing was submitted."
    )


def _some(names: list[str], every: bool) -> str:
    if every or len(names) <= _NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} more"


def show_files(files: Sequence[tuple[str, str]]) -> None:
    """Show the first files (up to SHOWN), each with what is wrong with it."""
    for name, why in files[: manifest.SHOWN]:
        err.print(escape(f"  {name}: {why}"), soft_wrap=True)
    if len(files) > manifest.SHOWN:
        err.print(f"  and {len(files) - manifest.SHOWN} more")


def fail_on(error: manifest.ManifestError) -> NoReturn:
    """Show the bad rows that were found before the error, then end the command with the error."""
    if error.checked and error.checked.bad_count:
        show_bad_rows(error.checked.bad_count, [msgspec.to_builtins(row) for row in error.checked.bad])
    fail(str(error))


def _refuse_bad(checked: manifest.Checked) -> None:
    if checked.bad_count:
        show_bad_rows(checked.bad_count, [msgspec.to_builtins(row) for row in checked.bad])
        raise typer.Exit(exits.ERROR)


def show_bad_rows(count: int, rows: list[dict[str, Any]]) -> None:
    """Show the first of ``count`` bad rows as a table: the row, its field, and what is wrong with the field."""
    shown_rows = rows[: manifest.SHOWN]
    with_lines = any(row.get("line") for row in shown_rows)
    columns: list[str | Column] = ["row", *(["line"] if with_lines else []), "id", "field", folding("what is wrong")]
    table = Table(*columns, title=f"{counted(count, 'bad row')}; nothing was submitted")
    for row in shown_rows:
        line = [str(row.get("line") or "")] if with_lines else []
        texts = (row["id"] or "", row["field"], row["reason"])
        table.add_row(str(row["row"]), *line, *(escape(_printable(text)) for text in texts))
    print_table(table, err)
    if count > len(shown_rows):
        err.print(f"and {count - len(shown_rows)} more")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
