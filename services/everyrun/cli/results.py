"""Define ``everyrun results``: show the result of every input as a table, CSV or JSON Lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, SubmissionId
from everyrun.cli.client import PATIENCE, Client, find
from everyrun.cli.console import SHOWN, counted, err, fail, folding, print_table, standard_output
from everyrun.cli.where import Where, read_where

CSV_COLUMNS = (
    *("id", "url", "file_id", "text", "name", "metadata", "status", "failure_reason", "failure_message"),
    *("run_id", "batch_id", "settled_at"),
)


def results(
    submission_id: SubmissionId,
    format_: Annotated[Literal["table", "csv", "jsonl"], typer.Option("--format", help="Output format.")] = "table",
    status: Annotated[
        list[str] | None, typer.Option(help="Only inputs with this status, for example FAILED; can be repeated.")
    ] = None,
    where: Where = None,
    sort: Annotated[
        str | None,
        typer.Option(help="input_id (the default), position, observed_at or settled_at; -settled_at: newest first."),
    ] = None,
    extracted: Annotated[
        bool,
        typer.Option(
            "--extracted", help="Include the extracted values: grouped by step (jsonl), or one column per value (csv)."
        ),
    ] = False,
    bom: Annotated[
        bool, typer.Option("--bom", help="Begin the CSV with a byte-order mark, so that Excel recognises UTF-8.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="File to write to. If the command fails, an existing file keeps its content.")
    ] = None,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show the result of every input of a submission.

    `--format csv --status FAILED` writes a manifest of the inputs that failed. To send them again, give the manifest to
    everyrun submit. The query strings of URLs are left out, because Everyrun does not keep presigned links. A
    shortened URL ends in #everyrun-redacted. Replace it before you submit the rows again: submit refuses such a URL. A
    warning says how many files this concerns.

    In a CSV, Everyrun puts an apostrophe before each text that a spreadsheet would run as a formula. everyrun submit
    removes the apostrophe. With --format jsonl, all text is unchanged.

    Example: everyrun results sub_01k... --status FAILED --format csv > again.csv
    """
    from everyrun.atomic_file import whole

    if extracted and format_ == "table":
        raise typer.BadParameter("--extracted needs --format jsonl or csv")
    if bom and format_ != "csv":
        raise typer.BadParameter("--bom needs --format csv")
    if output and format_ == "table":
        raise typer.BadParameter("--output needs --format jsonl or csv")
    filters = {"status": known_statuses(status or ())}
    for name, values in read_where(where).items():
        filters[name] = filters.get(name, []) + values
    if output and not output.parent.is_dir():
        fail(f"{output}: the folder {output.parent} does not exist; create it first")
    with Client(find(data_dir)) as client:
        rows = pages(client, submission_id, filters, sort, extracted)
        if format_ == "table":
            if not _table(rows):
                _say_why_none(client, submission_id, any(filters.values()))
            return
        try:
            with whole(output, newline="") if output else standard_output() as file:
                redacted = _csv(rows, file, extracted, bom) if format_ == "csv" else _jsonl(rows, file, extracted)
        except BrokenPipeError:
            raise
        except OSError as error:
            place = f"{output}, which was not changed" if output else "standard output"
            fail(f"{place}: {error.strerror or error}")
    if redacted:
        err.print(
            f"[yellow]{redacted} files were submitted with a password or a presigned URL, which is not kept; "
            "replace them before you submit the rows again[/]"
        )


def pages(
    client: Client, submission_id: str, filters: Mapping[str, Sequence[str]], sort: str | None, with_run: bool
) -> Iterator[dict[str, Any]]:
    """Yield the results of a submission that fit the filters, which are parameters of the query API.

    Ends the command if the submission does not exist.
    """
    client.progress(submission_id)
    yield from client.every(
        f"{client.target.query_url}/v1/results",
        "results",
        # Retry each request for this many seconds: one failed request among many must not end the command.
        PATIENCE,
        **{name: list(values) for name, values in filters.items() if values},
        submission_id=submission_id,
        sort=sort,
        limit=100 if with_run else 1000,
        include="run" if with_run else None,
    )


def _say_why_none(client: Client, submission_id: str, filtered: bool) -> None:
    """Print why no result was shown: what the inputs wait for. If nothing waits, print where to look."""
    waiting = [] if filtered else client.progress(submission_id)["waiting"]
    if not waiting:
        none = "No result fits the filters" if filtered else "No results found"
        err.print(f"{none}; see: everyrun report {submission_id}")
    for one in waiting:
        helps = f". You can: {one['what_to_do']}" if one["what_to_do"] else ""
        text = f"{counted(one['inputs'], 'input')} {one['status']}: {one['reason']}{helps}"
        err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)


def _table(rows: Iterator[dict[str, Any]]) -> int:
    """Show the first SHOWN rows. Return the number of rows that were read: SHOWN + 1 means that there are more."""
    table = Table("id", "status", "run", "settled at", folding("reason"))
    count = 0
    for count, row in enumerate(rows, 1):
        if count > SHOWN:
            break
        settled = (row.get("settled_at") or "")[:16].replace("T", " ")
        # An input without a result has a ``reason`` instead: what the input waits for.
        why = row.get("failure_reason") or row.get("reason") or ""
        texts = (row["external_id"], row["status"], row.get("run_id") or "", settled, why)
        table.add_row(*map(escape, texts))
    if count:
        print_table(table)
    if count > SHOWN:
        err.print(f"The first {SHOWN} are shown; write all with --format csv or jsonl, or narrow them with --where")
    return count


def csv_row(row: dict[str, Any]) -> list[str]:
    """Return the values of a result in the order of CSV_COLUMNS."""
    from everyrun.submission.intake.rows import REDACTED

    file = row.get("file") or {}
    metadata = json.dumps(row["metadata"], ensure_ascii=False) if row.get("metadata") else ""
    plain = [row.get(name) or "" for name in ("failure_reason", "failure_message", "run_id", "batch_id", "settled_at")]
    link = file.get("url") or file.get("object") or ""
    url = link + (REDACTED if file.get("redacted") and link else "")
    files = [url, file.get("id", ""), file.get("text", ""), file.get("name", "")]
    return [row["external_id"], *files, metadata, row["status"], *plain]


def _csv(rows: Iterator[dict[str, Any]], file: IO[str], extracted: bool, bom: bool) -> int:
    from everyrun.cli.extracted import write_table
    from everyrun.submission.intake.columns import csv_line

    redacted = 0

    def counted() -> Iterator[tuple[list[str], dict[str, Any]]]:
        nonlocal redacted
        for row in rows:
            redacted += bool((row.get("file") or {}).get("redacted"))
            yield csv_row(row), extractions(row.get("run")) if extracted else {}

    if extracted:
        write_table(counted(), CSV_COLUMNS, file, bom)
        return redacted
    file.write("\ufeff" if bom else "")
    file.write(csv_line(CSV_COLUMNS))
    file.writelines(csv_line(row) for row, _ in counted())
    return redacted


def known_statuses(given: Sequence[str]) -> list[str]:
    """Return the statuses, with known ones in capitals. Ends the command if one looks like a misspelled known one."""
    if not given:
        return []
    import difflib

    from everyrun.query.filters import STATUSES

    found = [status.upper() if status.upper() in STATUSES else status for status in given]
    for status in found:
        near = difflib.get_close_matches(status.upper(), STATUSES, 1, 0.85) if status not in STATUSES else ()
        if near:
            fail(f"Unknown status {status!r}; did you mean {near[0]}?", exits.USAGE)
    return found


def _jsonl(rows: Iterator[dict[str, Any]], file: IO[str], extracted: bool) -> int:
    for row in rows:
        shown = {**row, "extracted": extractions(row.get("run"))} if extracted else row
        shown.pop("run", None)
        file.write(json.dumps(shown, ensure_ascii=False) + "\n")
    return 0


def extractions(run: dict[str, Any] | None) -> dict[str, Any]:
    """Return the extracted values of each extraction step of a run, by the name of the step."""
    found = {}
    for step in (run or {}).get("stepRuns") or ():
        output = (((step.get("result") or {}).get("extractRun") or {}).get("output") or {}).get("value")
        if output is not None:
            name = plain = (step.get("step") or {}).get("name", "")
            for number in itertools.count(2):
                if name not in found:
                    break
                # A step can run several times, for example once for each part of a document. Its name is then numbered.
                name = f"{plain} ({number})"
            found[name] = output
    return found
