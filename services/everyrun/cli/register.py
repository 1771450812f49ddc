"""``everyrun register``: register a batch that another program sent to Extend."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Delimiter, Encoding, IdColumn, MetadataColumns, UrlColumn, Wait, Workflow
from everyrun.cli.client import Client, find
from everyrun.cli.console import counted, err, fail, out, say_unchecked


def register_batch(
    source: Annotated[str, typer.Argument(metavar="MANIFEST", help="A .csv, .tsv, .ndjson, .jsonl or .json file.")],
    batch: Annotated[str, typer.Option(metavar="BATCH_ID", help="Id of the batch at Extend.")],
    workflow: Workflow = None,
    workflow_version: Annotated[
        str | None, typer.Option(help="Workflow version that the other program named to Extend.")
    ] = None,
    id_column: IdColumn = None,
    url_column: UrlColumn = None,
    metadata_columns: MetadataColumns = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    wait: Wait = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Register a batch that another program sent to Extend.

    The manifest must list every input of the batch, with exactly the metadata that the other program sent, because
    Everyrun matches runs to inputs by their metadata. If several inputs have the same metadata, their runs stay
    unmatched. Running the command again changes nothing.

    Example: everyrun register batch.ndjson --batch batch_xK9 --workflow workflow_abc
    """
    from everyrun.cli import checks, manifest
    from everyrun.cli.watch import follow

    checks.sendable(batch=batch, workflow=workflow, workflow_version=workflow_version)
    target = find(data_dir)
    workflow_id = workflow or target.workflow_id
    if not workflow_id:
        fail("the workflow is missing: give its id at Extend with --workflow workflow_...", exits.USAGE)
    try:
        if manifest.is_folder(source):
            fail(f"{source} is a folder: name a manifest that lists the inputs of the batch", exits.USAGE)
        options = checks.read_options(id_column, url_column, metadata_columns or (), delimiter, encoding)
        with tempfile.TemporaryFile() as file:
            checks.read_manifest(source, options, file, local=False)
            file.seek(0)
            body = file.read()
    except manifest.ManifestError as error:
        checks.fail_on(error)
    except OSError as error:
        fail(f"{error.filename or source} cannot be read: {error.strerror or error}")
    with Client(target) as client:
        registered = _send(client, body, batch_id=batch, workflow_id=workflow_id, workflow_version=workflow_version)
        out.print(registered["submission_id"])
        err.print(f"Registered {registered['batch_id']} with {counted(registered['expected'], 'input')}.")
        say_unchecked(registered)
        if registered["ambiguous"]:
            err.print(
                f"[yellow]{counted(registered['ambiguous'], 'input')} with the same metadata as another input: the "
                "runs of such inputs stay unmatched. To list these runs, run: everyrun unmatched list[/]"
            )
        if wait:
            raise typer.Exit(follow(client, registered["submission_id"]))
        err.print(f"To follow it, run: everyrun watch {registered['submission_id']}")


def _send(client: Client, body: bytes, **query: str | None) -> dict[str, Any]:
    from everyrun.cli.checks import show_bad_rows
    from everyrun.submission.intake.parse import NDJSON

    answer = client.answer(
        "POST",
        f"{client.target.submission_url}/v1/batches",
        params={name: value for name, value in query.items() if value is not None},
        content=body,
        headers={"content-type": NDJSON},
    )
    if "bad_rows" in answer:
        show_bad_rows(answer["bad_rows"], answer["rows"])
        raise typer.Exit(exits.ERROR)
    return answer
