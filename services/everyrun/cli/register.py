"""``everyrun register``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from everyrun.cli import exits, manifest
from everyrun.cli.client import Client, DataDir, find
from everyrun.cli.console import err, fail, out, say_unchecked
from everyrun.cli.submit import (
    Delimiter,
    Encoding,
    IdColumn,
    UrlColumn,
    fail_on,
    read_manifest,
    read_options,
    sendable,
    show_bad_rows,
)
from everyrun.cli.watch import follow
from everyrun.submission.intake.parse import NDJSON


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="register", rich_help_panel="Submissions")(register_batch)


def register_batch(
    source: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="A .csv, .tsv, .ndjson, .jsonl or .json file: every input.")
    ],
    batch: Annotated[str, typer.Option(metavar="BATCH_ID", help="The batch's id at Extend (batch_...).")],
    workflow: Annotated[str | None, typer.Option(help="Extend's workflow id; the emulator's own by default.")] = None,
    workflow_version: Annotated[str | None, typer.Option(help="The version that was named, if one was.")] = None,
    id_column: IdColumn = None,
    url_column: UrlColumn = None,
    metadata_columns: Annotated[
        str, typer.Option(help="CSV columns, a,b,c, that went into the metadata; '*' for all that have no other use.")
    ] = "",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until every input is settled; 3 when inputs failed.")
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Account for a batch that was sent to Extend by somebody else. Nothing is sent.

    The manifest has every input of the batch with the metadata it was sent with: a run is matched by them. Inputs
    with equal metadata cannot be told apart; their runs stay unmatched. The same command again changes nothing.

    Example: everyrun register batch.ndjson --batch batch_xK9 --workflow workflow_abc
    """
    sendable(batch=batch, workflow=workflow, workflow_version=workflow_version)
    target = find(data_dir)
    workflow_id = workflow or target.workflow_id
    if not workflow_id:
        fail("--workflow is needed: the id of a workflow at Extend (workflow_...)", exits.USAGE)
    try:
        if manifest.is_folder(source):
            fail("a folder does not say what was sent: name a manifest with the inputs of the batch", exits.USAGE)
        options = read_options(id_column, url_column, metadata_columns, delimiter, encoding)
        with tempfile.TemporaryFile() as file:
            read_manifest(source, options, file, local=False)
            file.seek(0)
            body = file.read()
    except manifest.ManifestError as error:
        fail_on(error)
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
