"""Define ``everyrun export``: write the results of a submission to a file or a bucket as Parquet, CSV or NDJSON."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer
from rich.markup import escape

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, SubmissionId
from everyrun.cli.client import Client, find
from everyrun.cli.console import counted, err, fail
from everyrun.cli.results import known_statuses
from everyrun.cli.where import Where, read_where

_SUFFIXES: dict[str, Literal["parquet", "csv", "ndjson"]] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
}


def export(
    submission_id: SubmissionId,
    format_: Annotated[
        Literal["parquet", "csv", "ndjson"] | None,
        typer.Option("--format", help="Default: as the output's name ends, else csv."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="File, or object in a bucket: s3://, gs://, az://.")
    ] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only inputs with this status; can be repeated.")] = None,
    where: Where = None,
    since: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that remembers the last export: export only what has changed since, and update the file.",
        ),
    ] = None,
    extracted: Annotated[
        bool, typer.Option("--extracted", help="Add the column extracted: the values of each step, as JSON.")
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Export results of a submission to a file, a bucket or standard output.

    The columns are those of the view everyrun.flat_results, with types in Parquet. Inputs that were not sent are left
    out, and a message says how many. If the command fails, an existing output keeps its content. Texts are written
    unchanged; to open a CSV in a spreadsheet, use everyrun results.

    Example: everyrun export sub_01k... --output s3://lake/invoices.parquet --status PROCESSED --extracted
    """
    chosen = format_ or _SUFFIXES.get(Path(output or "").suffix.lower(), "csv")
    if chosen == "parquet" and output is None and sys.stdout.isatty():
        raise typer.BadParameter("--format parquet needs --output, or a pipe")
    filters = {"status": known_statuses(status or ())}
    for name, values in read_where(where).items():
        filters[name] = filters.get(name, []) + values
    query: dict[str, Any] = {name: values for name, values in filters.items() if values}
    before = _remembered(since, submission_id)
    query |= {"format": chosen, "extracted": str(extracted).lower()} | ({"since": before} if before else {})
    with Client(find(data_dir)) as client:
        url = f"{client.target.query_url}/v1/submissions/{submission_id}/export"
        with client.stream(url, query) as (headers, parts), _target(output) as file:
            size = 0
            for part in parts:
                file.write(part)
                size += len(part)
        _remember(since, submission_id, headers["everyrun-export-cursor"])
    _say(output, size, since if before else None, headers["everyrun-export"] == "changes")
    if not_sent := int(headers["everyrun-not-sent"]):
        err.print(
            f"{counted(not_sent, 'input was', 'inputs were')} not sent yet and not exported; "
            f"see: everyrun report {submission_id}"
        )


def _say(output: str | None, size: int, since: Path | None, only_changes: bool) -> None:
    what = "what has changed since the last export" if only_changes else "all rows that fit"
    place = escape(output or "standard output")
    err.print(f"Wrote {what} to {place} ({size / 1e6:,.1f} MB)", soft_wrap=True)
    if since is not None and not only_changes:
        err.print(
            "[yellow]All rows were exported, because since the last export the tables were rebuilt or restored, or "
            "another database server took over[/]",
            soft_wrap=True,
        )


def _remembered(since: Path | None, submission_id: str) -> str | None:
    """Return the cursor in the file, or None if there is no file yet. Ends the command if it is of another use."""
    if since is None:
        return None
    try:
        content = json.loads(since.read_text(encoding="utf-8"))
        of, cursor = content["submission_id"], content["cursor"]
    except FileNotFoundError:
        if not since.parent.is_dir():
            fail(f"{since}: the folder {since.parent} does not exist; create it first")
        return None
    except (ValueError, KeyError, TypeError):
        fail(f"{since} was not written by everyrun export --since; name another file, or a new one")
    if of != submission_id:
        fail(f"{since} belongs to the exports of {of}; name another file, or a new one", exits.USAGE)
    return str(cursor)


def _remember(since: Path | None, submission_id: str, cursor: str) -> None:
    if since is not None:
        from everyrun.atomic_file import write_text

        write_text(since, json.dumps({"submission_id": submission_id, "cursor": cursor}) + "\n")


@contextmanager
def _target(output: str | None) -> Iterator[IO[bytes]]:
    """Open what the export is written to. An existing file or object is replaced when the block ends without an error.

    Ends the command, and names the place, if it cannot be written.
    """
    try:
        if output is None:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif "://" in output:
            with _object(output) as file:
                yield file
        else:
            from everyrun.atomic_file import whole_binary

            path = Path(output)
            if not path.parent.is_dir():
                fail(f"{path}: the folder {path.parent} does not exist; create it first")
            with whole_binary(path) as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{output}, which was not changed" if output else "standard output"
        fail(f"{place}: {error.strerror or error}")


@contextmanager
def _object(url: str) -> Iterator[IO[bytes]]:
    """Yield a temporary file, and then put it into the bucket. The object is replaced as a whole or not at all."""
    import asyncio

    from everyrun.replay.archive.object_store import OBJECT_STORE_ERRORS, ObjectStore

    folder, _, name = url.rpartition("/")
    if not name or folder.endswith(":/"):
        fail(f"{url} names no object; write s3://BUCKET/NAME", exits.USAGE)
    try:
        store = ObjectStore(folder)
    except (*OBJECT_STORE_ERRORS, ValueError) as error:
        fail(f"{url}: {error}")
    with tempfile.NamedTemporaryFile(prefix="everyrun-export-") as file:
        yield file
        file.flush()
        try:
            asyncio.run(store.put(name, Path(file.name)))
        except OBJECT_STORE_ERRORS as error:
            fail(f"{url}, which was not changed: {error}")
