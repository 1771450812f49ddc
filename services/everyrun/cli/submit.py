"""Define ``everyrun submit``: submit the rows of a manifest, or the documents in a folder or bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Delimiter, Encoding, IdColumn, MetadataColumns, UrlColumn, Wait, Workflow
from everyrun.cli.client import PATIENCE, Client, Target, find, find_if_any
from everyrun.cli.console import counted, err, fail, out, say_unchecked

if TYPE_CHECKING:
    from everyrun.cli.upload import UploadFailedError


def submit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Manifest (.csv, .ndjson, .json, .parquet, or -), folder, or s3://, gs:// or az:// prefix.",
        ),
    ],
    workflow: Workflow = None,
    workflow_version: Annotated[str | None, typer.Option(help="A number, or draft. Default: newest published.")] = None,
    priority: Annotated[int, typer.Option(min=1, max=100, help="Lower numbers are sent first.")] = 90,
    max_open: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Maximum number of inputs open at Extend.")
    ] = None,
    id_column: IdColumn = None,
    url_column: UrlColumn = None,
    metadata_columns: MetadataColumns = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of standard input (-): csv, ndjson, json or parquet.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Send only files that match, such as '*.pdf'."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Do not send files and folders that match, such as drafts/."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Skip files of a folder that are empty or cannot be read.")
    ] = False,
    list_skipped: Annotated[bool, typer.Option("--list-skipped", help="Name every file that is not sent.")] = False,
    list_files: Annotated[
        bool, typer.Option("--list-files", help="With --dry-run, print every local file to send, with its type.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, max=20, help="Maximum number of new tries of an input that fails.")
    ] = 0,
    retry_reasons: Annotated[str | None, typer.Option(help="Only for these failure reasons, as a,b.")] = None,
    stop_after_failures: Annotated[
        str | None, typer.Option(help="Pause if more inputs fail: a number, or a share such as 5%.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Submit even if the same rows were submitted before.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Submit the rows at most once with this key.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, but submit nothing.")] = False,
    wait: Wait = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Submit the rows of a manifest, or the documents in a folder or bucket.

    A CSV or Parquet file has one of the columns url (also s3://...), file_id, text and path (a local file). NDJSON has
    one row per line: {"id": "a-1", "file": {"url": "https://..."}, "metadata": {"customer": 7}}

    All rows and files are checked first; then all are submitted, or none. What is left out is listed. After an
    interruption, run the same command again: uploads are remembered.

    Example: everyrun submit invoices.csv --metadata-columns customer,year --wait
    """
    from everyrun.cli import checks, manifest, sending
    from everyrun.cli.folder import shown
    from everyrun.cli.upload import UploadFailedError
    from everyrun.cli.watch import follow

    checks.sendable(workflow=workflow, workflow_version=workflow_version, idempotency_key=idempotency_key)
    try:
        kind = manifest.source_kind(source)
        _refuse_other_options(
            kind,
            {
                "manifest": {
                    "--id-column": id_column,
                    "--url-column": url_column,
                    "--metadata-columns": metadata_columns,
                    "--delimiter": delimiter,
                    "--encoding": encoding,
                },
                "folder or bucket": {"--include": include, "--exclude": exclude, "--list-skipped": list_skipped},
                "folder": {"--skip-unreadable": skip_unreadable},
            },
        )
        checks.stdin_format(source, format_)
        if list_files and not dry_run:
            fail("--list-files works only with --dry-run", exits.USAGE)
        target = find_if_any(data_dir) if dry_run else find(data_dir)
        workflow_id = workflow or (target.workflow_id if target else "")
        if not dry_run and not workflow_id:
            fail("--workflow is needed: the id of a workflow at Extend (workflow_...)", exits.USAGE)
        with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as rows:
            # Read the source only once, because files may appear in a folder or vanish from it during the upload.
            if kind == "folder":
                checked = checks.read_folder(source, include or (), exclude or (), skip_unreadable, list_skipped, file)
            elif kind == "bucket":
                checked = checks.read_bucket(source, include or (), exclude or (), list_skipped, file)
            else:
                options = checks.read_options(id_column, url_column, metadata_columns or (), delimiter, encoding)
                checked = checks.read_manifest(source, options, file, format_=format_)
            if dry_run or target is None:
                _check_workflow(target, workflow_id, workflow_version)
                if checked.object is not None and target is not None:
                    with Client(target) as client:
                        client.check_object(checked.object)
                checks.show_dry_run(checked, list_files)
                return
            with Client(target) as client:
                if checked.object is not None:
                    client.check_object(checked.object, PATIENCE)
                if checked.files:
                    # Check the workflow before the upload, so that no file is uploaded in vain. If there is nothing to
                    # upload, no check is needed here: the service checks the workflow when it receives the rows.
                    client.check_workflow(workflow_id, workflow_version, PATIENCE)
                checked.write(sending.upload(checked.files, target, data_dir, again), rows)
                rules = checks.rules(retries, retry_reasons, stop_after_failures, checked.count)
                query = {
                    "workflow_id": workflow_id,
                    "workflow_version": workflow_version,
                    "priority": priority,
                    "max_open_inputs": max_open,
                    **rules,
                }
                call = sending.Call(client, rows, checked, query, idempotency_key)
                submission = call.send(again)
                out.print(submission["submission_id"])
                batches = counted(submission["batches"], "batch", "batches")
                err.print(f"{counted(submission['expected'], 'input')} submitted, in {batches}")
                say_unchecked(submission)
                if wait:
                    raise typer.Exit(follow(client, submission["submission_id"]))
                err.print(f"Follow it with: everyrun watch {submission['submission_id']}")
    except KeyboardInterrupt:
        err.print("Nothing was submitted.")
        raise typer.Exit(exits.INTERRUPTED) from None
    except manifest.ManifestError as error:
        checks.fail_on(error)
    except UploadFailedError as error:
        _show_failed(error)
    except OSError as error:
        fail(f"{shown(error.filename) + ': ' if error.filename else ''}{error.strerror or error}")


def _check_workflow(target: Target | None, workflow_id: str, version: str | None) -> None:
    """Check the workflow for a dry run, or print why it could not be checked.

    Ends the command if Extend has no such workflow.
    """
    why: str | None
    if target is None:
        why = "no stack is running, and the settings name no services"
    elif not workflow_id:
        why = "--workflow was not given"
    else:
        with Client(target) as client:
            why = client.check_workflow(workflow_id, version)
        if why is None:
            err.print(escape(f"Extend has the workflow {workflow_id}{f', version {version}' if version else ''}."))
    if why is not None:
        err.print(f"[yellow]{escape(f'The workflow was not checked: {why}.')}[/]", soft_wrap=True)


def _refuse_other_options(kind: str, given: dict[str, dict[str, Any]]) -> None:
    """End the command if an option is given that is not for this kind of source.

    ``given`` contains the values of options, by the kinds of sources that they are for.
    """
    for kinds, options in given.items():
        for name, value in options.items():
            if value and kind not in kinds:
                fail(f"{name} is for a {kinds}; leave it out", exits.USAGE)


def _show_failed(error: UploadFailedError) -> None:
    from everyrun.cli.checks import show_files

    show_files(error.files)
    fail(f"{error}; nothing was submitted. What was uploaded is remembered")
