"""``everyrun submit``."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from everyrun.cli import exits, folder, manifest
from everyrun.cli.client import PATIENCE, Client, DataDir, Target, find
from everyrun.cli.console import err, fail, folding, out, print_table, say_unchecked
from everyrun.cli.folder import shown
from everyrun.cli.upload import Account, Journal, UploadFailedError, upload_all
from everyrun.cli.watch import follow
from everyrun.submission.intake.columns import Options
from everyrun.submission.intake.parse import NDJSON

#: Names that stand for all of their kind in the summary.
_NAMES = 3

IdColumn = Annotated[str | None, typer.Option(help="CSV column that is the input's id; `id` by default.")]
UrlColumn = Annotated[str | None, typer.Option(help="CSV column that holds the file's link; `url` by default.")]
Delimiter = Annotated[
    str | None, typer.Option(help="Delimiter of the CSV: a character, or tab. Comma, semicolon and tab are recognised.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the manifest, for example windows-1252; UTF-8 by default.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Submissions")(submit)


def submit(
    source: Annotated[
        str, typer.Argument(metavar="MANIFEST|FOLDER", help="A .csv, .tsv, .ndjson, .jsonl or .json file, or a folder.")
    ],
    workflow: Annotated[str | None, typer.Option(help="Extend's workflow id; the emulator's own by default.")] = None,
    workflow_version: Annotated[
        str | None, typer.Option(help="A number or draft; the newest published by default.")
    ] = None,
    priority: Annotated[int, typer.Option(min=1, max=100, help="Lower goes first.")] = 90,
    id_column: IdColumn = None,
    url_column: UrlColumn = None,
    metadata_columns: Annotated[
        str, typer.Option(help="CSV columns, a,b,c, that go into the metadata; '*' for all that have no other use.")
    ] = "",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Of a folder, only files like this ('*.pdf'); may be given again.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Of a folder, no files or folders like this; may be given again.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Of a folder, leave out what cannot be read, and empty files.")
    ] = False,
    list_skipped: Annotated[
        bool, typer.Option("--list-skipped", help="Of a folder, name every file that is left out.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Submit even if the very same rows were submitted before.")
    ] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key again hands nothing in twice.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything here, hand nothing in.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until every input is settled; 3 when inputs failed.")
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Submit the rows of a manifest, or the documents in a folder, which are uploaded to Extend first.

    A CSV has a header and one of the columns url, file_id, text and path (a local file, uploaded first); id, name,
    password and metadata (a JSON object) are optional. NDJSON has a row a line:
    {"id": "a-1", "file": {"url": "https://..."}, "metadata": {"customer": 7}}

    Everything is checked first: either every row is taken in, or none. What is left out is counted and named.
    Uploads are remembered: an interrupted command resumes where it broke off.

    Example: everyrun submit invoices.csv --metadata-columns customer,year --wait
    """
    sendable(workflow=workflow, workflow_version=workflow_version, idempotency_key=idempotency_key)
    try:
        in_folder = manifest.is_folder(source)
        _only(
            in_folder,
            {"--id-column": id_column, "--url-column": url_column, "--metadata-columns": metadata_columns}
            | {"--delimiter": delimiter, "--encoding": encoding},
            {"--include": include, "--exclude": exclude, "--skip-unreadable": skip_unreadable}
            | {"--list-skipped": list_skipped},
        )
        target = None if dry_run else find(data_dir)
        workflow_id = workflow or (target.workflow_id if target else "")
        if target and not workflow_id:
            fail("--workflow is needed: the id of a workflow at Extend (workflow_...)", exits.USAGE)
        with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as rows:
            # Read once: files may come and go in a folder while it is uploaded.
            if in_folder:
                checked = _folder(source, include or (), exclude or (), skip_unreadable, list_skipped, file)
            else:
                options = read_options(id_column, url_column, metadata_columns, delimiter, encoding)
                checked = read_manifest(source, options, file)
            if target is None:
                err.print(
                    f"{checked.count} inputs in {checked.batches} batches, {len(checked.files)} files to upload; "
                    "every row is right. Nothing was handed in."
                )
                return
            checked.write(_upload(checked.files, target, data_dir, again), rows)
            with Client(target) as client:
                call = _Call(client, rows, checked, workflow_id, workflow_version, priority, idempotency_key)
                submission = call.send(again)
                out.print(submission["submission_id"])
                err.print(f"{submission['expected']} inputs handed in, in {submission['batches']} batches")
                say_unchecked(submission)
                if wait:
                    raise typer.Exit(follow(client, submission["submission_id"]))
                err.print(f"See how it goes with: everyrun watch {submission['submission_id']}")
    except manifest.ManifestError as error:
        fail_on(error)
    except UploadFailedError as error:
        _show_failed(error)
    except OSError as error:
        fail(f"{shown(error.filename) + ': ' if error.filename else ''}{error.strerror or error}")


def sendable(**arguments: str | None) -> None:
    """End the command if an argument cannot be sent in an address or a head."""
    for name, value in arguments.items():
        if value is not None and not (value.isascii() and value.isprintable() and value.strip() == value and value):
            option = name.replace("_", "-")
            fail(f"--{option}: {shown(value)!r} is no such value: letters, digits and marks of ASCII", exits.USAGE)


def _only(in_folder: bool, of_manifest: dict[str, Any], of_folder: dict[str, Any]) -> None:
    """End the command if an option is given that is of no use: it would be passed over without a word."""
    for name, value in (of_manifest if in_folder else of_folder).items():
        if value:
            fail(f"{name} is for {'a manifest' if in_folder else 'a folder'}; leave it out", exits.USAGE)


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


def _folder(
    source: str, include: Sequence[str], exclude: Sequence[str], skip_unreadable: bool, every: bool, file: IO[bytes]
) -> manifest.Checked:
    """Check the documents in a folder and say what was found; ends the command if nothing can be sent."""
    found = folder.find(Path(source), include, exclude)
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
        _show_files(found.broken)
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


def _show_files(files: Sequence[tuple[str, str]]) -> None:
    for name, why in files[: manifest.SHOWN]:
        err.print(escape(f"  {name}: {why}"), soft_wrap=True)
    if len(files) > manifest.SHOWN:
        err.print(f"  and {len(files) - manifest.SHOWN} more")


def _show_failed(error: UploadFailedError) -> None:
    _show_files(error.files)
    fail(f"{error}; nothing was handed in. What was uploaded is remembered")


def fail_on(error: manifest.ManifestError) -> None:
    """End the command; the bad rows before what ended the reading are shown too."""
    if error.checked and error.checked.bad_count:
        show_bad_rows(error.checked.bad_count, [msgspec.to_builtins(row) for row in error.checked.bad])
    fail(str(error))


def _refuse_bad(checked: manifest.Checked) -> None:
    if checked.bad_count:
        show_bad_rows(checked.bad_count, [msgspec.to_builtins(row) for row in checked.bad])
        raise typer.Exit(exits.ERROR)


def _upload(files: list[manifest.Local], target: Target, data_dir: Path, ask_again: bool) -> list[str]:
    if not files:
        return []
    if target.upload_note:
        err.print(f"[yellow]{escape(target.upload_note)}[/]", soft_wrap=True)
    journal = Journal(data_dir / "uploads.sqlite")
    known_before = 0
    try:
        with _progress(MofNCompleteColumn()) as progress:
            task = progress.add_task("Uploading", total=len(files))

            def done(known: bool) -> None:
                nonlocal known_before
                known_before += known
                progress.advance(task)

            account = Account(target.extend_base_url, target.extend_api_key, target.extend_workspace_id)
            ids = asyncio.run(upload_all(files, account, journal, done, ask_again))
    finally:
        journal.close()
    if known_before:
        err.print(f"{known_before} of {len(files)} files had been uploaded before")
    return ids


class _Call:
    """The call that hands the rows in."""

    def __init__(
        self,
        client: Client,
        rows: IO[bytes],
        checked: manifest.Checked,
        workflow_id: str,
        version: str | None,
        priority: int,
        key: str | None,
    ) -> None:
        self._client = client
        self._rows = rows
        self._checked = checked
        # One of our own where none is given: an upload whose answer was lost may then be repeated.
        self._key = key or f"cli-{secrets.token_hex(16)}"
        query = {"workflow_id": workflow_id, "workflow_version": version, "priority": priority}
        self._query = {name: value for name, value in query.items() if value is not None}

    def send(self, again: bool) -> dict[str, Any]:
        """Return the submission that was taken in; ends the command where none was."""
        answer = self._answer(again)
        if answer.get("code") == "SUBMITTED_BEFORE":
            err.print(f"[yellow]{escape(answer['message'])}[/]", soft_wrap=True)
            if not (sys.stdin.isatty() and err.is_terminal):
                fail("nothing was handed in. To submit the same rows once more: --again", exits.SUBMITTED_BEFORE)
            if not typer.confirm("Submit them once more?", err=True):
                raise typer.Exit(exits.SUBMITTED_BEFORE)
            answer = self._answer(again=True)
        if "bad_rows" in answer:
            for row in answer["rows"]:
                row["line"] = self._checked.line_of(row["row"])
            show_bad_rows(answer["bad_rows"], answer["rows"])
            raise typer.Exit(exits.ERROR)
        return answer

    def _answer(self, again: bool) -> dict[str, Any]:
        rows, client = self._rows, self._client
        with _progress(DownloadColumn()) as progress:
            task = progress.add_task(f"Handing in {self._checked.count} inputs", total=rows.tell())

            class Body:
                """The rows from their beginning, at every try."""

                def __iter__(self) -> Iterator[bytes]:
                    rows.seek(0)
                    progress.reset(task)
                    while part := rows.read(1 << 18):
                        yield part
                        progress.advance(task, len(part))

            return client.answer(
                "POST",
                f"{client.target.submission_url}/v1/submissions",
                params=self._query | {"once": "false" if again else "true"},
                within=PATIENCE,
                unanswered="Whether they were taken in is not known: the same command with "
                f"--idempotency-key {self._key} hands nothing in twice",
                content=Body(),
                headers={"content-type": NDJSON, "idempotency-key": self._key},
            )


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


def _progress(count: ProgressColumn) -> Progress:
    speed = TransferSpeedColumn() if isinstance(count, DownloadColumn) else TextColumn("")
    columns = (TextColumn("{task.description}"), BarColumn(), count, speed, TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True)
