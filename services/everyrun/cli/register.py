"""``everyrun register``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Delimiter, Encoding, IdColumn, MetadataColumns, UrlColumn, Wait, Workflow
from everyrun.cli.client import Client, find
from everyrun.cli.console import err, fail, out, say_unchecked


def register_batch(
    source: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="A .csv, .tsv, .ndjson, .jsonl or .json file: every input.")
    ],
    batch: Annotated[str, typer.Option(metavar="BATCH_ID", help="The batch's id at Extend (batch_...).")],
    workflow: Workflow = None,
    workflow_version: Annotated[str | None, typer.Option(help="The version that was named, if one was.")] = None,
    id_column: IdColumn = None,
    url_column: UrlColumn = None,
    metadata_columns: MetadataColumns = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    wait: Wait = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Account for a batch that another program sent to Extend.

    The manifest has every input of the batch with the metadata it was sent with: a run is matched by them. Inputs
    with equal metadata cannot be told apart; their runs stay unmatched. The same command again changes nothing.

    Example: everyrun register batch.ndjson --batch batch_xK9 --workflow workflow_abc
    """
    from everyrun.cli import checks, manifest
    from everyrun.cli.watch import follow

    checks.sendable(batch=batch, workflow=workflow, workflow_version=workflow_version)
    target = find(data_dir)
    workflow_id = workflow or target.workflow_id
    if not workflow_id:
        fail("--workflow is needed: the id of a workflow at Extend (workflow_...)", exits.USAGE)
    try:
        if manifest.is_folder(source):
            fail("a folder does not say what was sent: name a manifest with the inputs of the batch", exits.USAGE)
        options = checks.read_options(id_column, url_column, metadata_columns or (), delimiter, encoding)
        with tempfile.TemporaryFile() as file:
            checks.read_manifest(source, options, file, local=False)
            file.seek(0)
            body = file.read()
    except manifest.ManifestError as error:
        checks.fail_on(error)
    except OSError as error:
        fail(error.strerror or str(error))
    with Client(target) as client:
        done = _send(client, body, batch_id=batch, workflow_id=workflow_id, workflow_version=workflow_version)
        out.print(done["submission_id"])
        err.print(f"{done['expected']} inputs of {done['batch_id']} are accounted for")
        say_unchecked(done)
        if done["ambiguous"]:
            err.print(
                f"[yellow]{done['ambiguous']} of them have metadata equal to another's: their runs stay unmatched; "
                "see: everyrun unmatched list[/]"
            )
        if wait:
            raise typer.Exit(follow(client, done["submission_id"]))
        err.print(f"See how it goes with: everyrun watch {done['submission_id']}")


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
