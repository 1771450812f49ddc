"""``everyrun submit``."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Iterator
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
from rich.table import Table

from everyrun.cli import exits, manifest
from everyrun.cli.client import PATIENCE, Client, DataDir, Target, find
from everyrun.cli.console import err, fail, out
from everyrun.cli.upload import Account, Journal, UploadFailedError, upload_all
from everyrun.cli.watch import follow
from everyrun.submission.chunks import Cutter
from everyrun.submission.intake import new_submission_id
from everyrun.submission.parse import NDJSON, Unreadable
from everyrun.submission.rows import BadRow, check_row

_ROW_MAX, _CHUNK_INPUTS, _CHUNK_BYTES = 900_000, 1000, 900_000
_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Submissions")(submit)


def submit(
    source: Annotated[
        Path, typer.Argument(metavar="MANIFEST|FOLDER", help="A .csv, .ndjson or .jsonl file, or a folder.")
    ],
    workflow: Annotated[str | None, typer.Option(help="Extend's workflow id; the emulator's own by default.")] = None,
    workflow_version: Annotated[
        str | None, typer.Option(help="A number or draft; the newest published by default.")
    ] = None,
    priority: Annotated[int, typer.Option(min=1, max=100, help="Lower goes first.")] = 90,
    id_column: Annotated[str | None, typer.Option(help="CSV column that is the input's id; `id` by default.")] = None,
    metadata_columns: Annotated[
        str, typer.Option(help="CSV columns, a,b,c, that go into the metadata; '*' for all that have no other use.")
    ] = "",
    idempotency_key: Annotated[str | None, typer.Option(help="The same key again hands nothing in twice.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row here, hand nothing in.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until every input is settled; 3 when inputs failed.")
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Hand inputs in: the rows of a manifest, or the files of a folder, which are uploaded to Extend first.

    A CSV has a header and one of the columns url, file_id, text and path (a local file, uploaded first); id, name,
    password and metadata (a JSON object) are optional. NDJSON has a row a line:
    {"id": "a-1", "file": {"url": "https://..."}, "metadata": {"customer": 7}}

    Either every row is taken in, or none. Uploads are remembered: an interrupted command goes on where it broke off.

    Example: everyrun submit invoices.csv --metadata-columns customer,year --wait
    """
    columns = [name.strip() for name in metadata_columns.split(",") if name.strip()]
    try:
        if dry_run:
            _dry_run(manifest.read(source, id_column, columns))
            return
        target = find(data_dir)
        workflow_id = workflow or target.workflow_id
        if not workflow_id:
            fail("--workflow is needed: the id of a workflow at Extend (workflow_...)", exits.USAGE)
        with Client(target) as client, tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as rows:
            # Read once: files may come and go in a folder while it is uploaded.
            paths = _list(manifest.read(source, id_column, columns), listed)
            count = _write(listed, _upload(paths, target, data_dir), rows)
            if count == 0:
                fail(f"{source} has no rows" if source.is_file() else f"{source} has no file that Extend takes")
            submission = _send(client, rows, count, workflow_id, workflow_version, priority, idempotency_key)
            out.print(submission["submission_id"])
            err.print(f"{submission['expected']} inputs handed in, in {submission['batches']} batches")
            if wait:
                raise typer.Exit(follow(client, submission["submission_id"]))
            err.print(f"See how it goes with: everyrun watch {submission['submission_id']}")
    except (manifest.ManifestError, UploadFailedError) as error:
        fail(str(error))


def _dry_run(rows: Iterator[Any]) -> None:
    identifier, cutter = new_submission_id(), Cutter(_CHUNK_INPUTS, _CHUNK_BYTES)
    bad: list[BadRow] = []
    seen: dict[str, int] = {}
    count = local = wrong = 0
    for count, given in enumerate(rows, 1):
        checked = _check(count, given, identifier)
        if not isinstance(checked, BadRow) and (first := seen.setdefault(checked.external_id, count)) != count:
            checked = BadRow(count, checked.external_id, "id", f"is the id of row {first} too")
        if isinstance(checked, BadRow):
            wrong += 1
            bad += [checked] if len(bad) < _SHOWN else []
        else:
            cutter.add(checked.size)
        local += manifest.local_path(given) is not None
    if wrong:
        show_bad_rows(wrong, [msgspec.to_builtins(row) for row in bad])
        raise typer.Exit(exits.ERROR)
    if count == 0:
        fail("there are no rows")
    batches = len(cutter.finish())
    err.print(
        f"{count} inputs in {batches} batches, {local} files to upload; every row is right. Nothing was handed in."
    )


def _check(number: int, given: Any, submission_id: str) -> Any:
    if isinstance(given, Unreadable):
        return BadRow(number, None, "", given.reason)
    path = manifest.local_path(given)
    if path is not None:
        if not path.is_file():
            return BadRow(number, given.get("id"), "file.path", f"there is no file {path}")
        given = {**given, "file": {"id": "file_to_be_uploaded"}}
    return check_row(number, given, submission_id, _ROW_MAX)


def _list(rows: Iterator[Any], file: IO[bytes]) -> list[Path]:
    """Write the rows down as they are; the local files that they name."""
    paths = []
    for row in rows:
        file.write(manifest.line_of(row))
        if (path := manifest.local_path(row)) is not None:
            paths.append(path)
    return paths


def _upload(paths: list[Path], target: Target, data_dir: Path) -> dict[Path, str]:
    if not paths:
        return {}
    journal = Journal(data_dir / "uploads.sqlite")
    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task("Uploading", total=len(set(paths)))
        skipped = 0

        def done(_path: Path, known: bool) -> None:
            nonlocal skipped
            skipped += known
            progress.advance(task)

        account = Account(target.extend_base_url, target.extend_api_key, target.extend_workspace_id)
        found = asyncio.run(upload_all(paths, account, journal, done))
    if skipped:
        err.print(f"{skipped} of {len(found)} files had been uploaded before")
    return found


def _write(listed: IO[bytes], uploaded: dict[Path, str], file: IO[bytes]) -> int:
    """Write the listed rows with the ids of their files; how many they are."""
    count = 0
    listed.seek(0)
    for line in listed:
        count += 1
        row: Any = manifest.row_of(line) if uploaded else None
        path = manifest.local_path(row)
        file.write(line if path is None else manifest.line_of({**row, "file": {"id": uploaded[path]}}))
    return count


def _send(
    client: Client,
    rows: IO[bytes],
    count: int,
    workflow_id: str,
    version: str | None,
    priority: int,
    key: str | None,
) -> dict[str, Any]:
    size = rows.tell()
    # One of our own where none is given: an upload whose answer was lost may then be repeated.
    key = key or f"cli-{secrets.token_hex(16)}"
    headers = {"content-type": NDJSON, "idempotency-key": key}
    query = {"workflow_id": workflow_id, "workflow_version": version, "priority": priority}
    with _progress(DownloadColumn()) as progress:
        task = progress.add_task(f"Handing in {count} inputs", total=size)

        class Body:
            """The rows from their beginning, at every try."""

            def __iter__(self) -> Iterator[bytes]:
                rows.seek(0)
                progress.reset(task)
                while part := rows.read(1 << 18):
                    yield part
                    progress.advance(task, len(part))

        answer = client.answer(
            "POST",
            f"{client.target.submission_url}/v1/submissions",
            params={name: value for name, value in query.items() if value is not None},
            within=PATIENCE,
            unanswered=f"Whether they were taken in is not known: the same command with --idempotency-key {key} hands "
            "nothing in twice",
            content=Body(),
            headers=headers,
        )
    if "bad_rows" in answer:
        show_bad_rows(answer["bad_rows"], answer["rows"])
        raise typer.Exit(exits.ERROR)
    return answer


def show_bad_rows(count: int, rows: list[dict[str, Any]]) -> None:
    """What is wrong with which row and field."""
    table = Table("row", "id", "field", "what is wrong", title=f"{count} bad rows; nothing was handed in")
    for row in rows[:_SHOWN]:
        table.add_row(str(row["row"]), *map(escape, (row["id"] or "", row["field"], row["reason"])))
    err.print(table)
    if count > min(len(rows), _SHOWN):
        err.print(f"and {count - min(len(rows), _SHOWN)} more")


def _progress(count: ProgressColumn) -> Progress:
    speed = TransferSpeedColumn() if isinstance(count, DownloadColumn) else TextColumn("")
    columns = (TextColumn("{task.description}"), BarColumn(), count, speed, TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True)
