"""``everyrun submit``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Delimiter, Encoding, IdColumn, UrlColumn, Wait, Workflow
from everyrun.cli.client import Client, find
from everyrun.cli.console import err, fail, out, say_unchecked

if TYPE_CHECKING:
    from everyrun.cli.upload import UploadFailedError


def submit(
    source: Annotated[
        str, typer.Argument(metavar="MANIFEST|FOLDER", help="A .csv, .tsv, .ndjson, .jsonl or .json file, or a folder.")
    ],
    workflow: Workflow = None,
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
    wait: Wait = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Submit the rows of a manifest, or the documents in a folder.

    A CSV has a header and one of the columns url, file_id, text and path (a local file, uploaded first); id, name,
    password and metadata (a JSON object) are optional. NDJSON has a row a line:
    {"id": "a-1", "file": {"url": "https://..."}, "metadata": {"customer": 7}}

    Everything is checked first: either every row is taken in, or none. What is left out is counted and named.
    Uploads are remembered: an interrupted command resumes where it broke off.

    Example: everyrun submit invoices.csv --metadata-columns customer,year --wait
    """
    from everyrun.cli import checks, manifest, sending
    from everyrun.cli.folder import shown
    from everyrun.cli.upload import UploadFailedError
    from everyrun.cli.watch import follow

    checks.sendable(workflow=workflow, workflow_version=workflow_version, idempotency_key=idempotency_key)
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
                checked = checks.read_folder(source, include or (), exclude or (), skip_unreadable, list_skipped, file)
            else:
                options = checks.read_options(id_column, url_column, metadata_columns, delimiter, encoding)
                checked = checks.read_manifest(source, options, file)
            if target is None:
                err.print(
                    f"{checked.count} inputs in {checked.batches} batches, {len(checked.files)} files to upload; "
                    "every row is right. Nothing was handed in."
                )
                return
            checked.write(sending.upload(checked.files, target, data_dir, again), rows)
            with Client(target) as client:
                call = sending.Call(client, rows, checked, workflow_id, workflow_version, priority, idempotency_key)
                submission = call.send(again)
                out.print(submission["submission_id"])
                err.print(f"{submission['expected']} inputs handed in, in {submission['batches']} batches")
                say_unchecked(submission)
                if wait:
                    raise typer.Exit(follow(client, submission["submission_id"]))
                err.print(f"See how it goes with: everyrun watch {submission['submission_id']}")
    except manifest.ManifestError as error:
        checks.fail_on(error)
    except UploadFailedError as error:
        _show_failed(error)
    except OSError as error:
        fail(f"{shown(error.filename) + ': ' if error.filename else ''}{error.strerror or error}")


def _only(in_folder: bool, of_manifest: dict[str, Any], of_folder: dict[str, Any]) -> None:
    """End the command if an option is given that is of no use: it would be passed over without a word."""
    for name, value in (of_manifest if in_folder else of_folder).items():
        if value:
            fail(f"{name} is for {'a manifest' if in_folder else 'a folder'}; leave it out", exits.USAGE)


def _show_failed(error: UploadFailedError) -> None:
    from everyrun.cli.checks import show_files

    show_files(error.files)
    fail(f"{error}; nothing was handed in. What was uploaded is remembered")
