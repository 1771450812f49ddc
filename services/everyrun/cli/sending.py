"""Upload the local files that rows name, and send the rows to the submission service."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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

from everyrun.cli import exits, manifest
from everyrun.cli.checks import show_bad_rows
from everyrun.cli.client import PATIENCE, Client, Target
from everyrun.cli.console import counted, err, fail
from everyrun.cli.upload import Account, Journal, upload_all
from everyrun.submission.intake.parse import NDJSON


def upload(files: list[manifest.Local], target: Target, data_dir: Path, ask_again: bool) -> list[str]:
    """Upload files to Extend and return their ids, in the order of ``files``. Raises UploadFailedError."""
    if not files:
        return []
    if target.upload_note:
        err.print(f"[yellow]{escape(target.upload_note)}[/]", soft_wrap=True)
    journal = Journal(data_dir / "uploads.sqlite")
    known_before = finished = 0
    try:
        with _progress(MofNCompleteColumn()) as progress:
            task = progress.add_task("Uploading", total=len(files))

            def done(known: bool) -> None:
                nonlocal known_before, finished
                known_before += known
                finished += 1
                progress.advance(task)

            account = Account(target.extend_base_url, target.extend_api_key, target.extend_workspace_id)
            ids = asyncio.run(upload_all(files, account, journal, done, ask_again))
    except KeyboardInterrupt:
        err.print(
            f"Nothing was submitted. {finished} of {counted(len(files), 'file')} "
            f"{'is' if finished == 1 else 'are'} uploaded and remembered: run the same command again to continue."
        )
        raise typer.Exit(exits.INTERRUPTED) from None
    finally:
        journal.close()
    if known_before:
        err.print(f"{known_before} of {counted(len(files), 'file')} had been uploaded before")
    return ids


class Call:
    """Submit rows in one request. If the request is not answered, it is repeated."""

    def __init__(
        self,
        client: Client,
        rows: IO[bytes],
        checked: manifest.Checked,
        query: dict[str, Any],
        key: str | None,
    ) -> None:
        self._client = client
        self._rows = rows
        self._checked = checked
        # If the user gives no key, use a random one: a request whose answer was lost can then be repeated safely.
        self._key = key or f"cli-{secrets.token_hex(16)}"
        self._unanswered = (
            "It is not known if the rows were submitted. The same command with "
            f"--idempotency-key {self._key} does not submit them twice"
        )
        self._query = {name: value for name, value in query.items() if value is not None}

    def send(self, again: bool) -> dict[str, Any]:
        """Submit the rows and return the submission. Ends the command if the rows are not accepted.

        If the same rows were submitted before, ask the user whether to submit them again.
        """
        try:
            answer = self._answer(again)
        except KeyboardInterrupt:
            err.print(escape(self._unanswered), soft_wrap=True)
            raise typer.Exit(exits.INTERRUPTED) from None
        if answer.get("code") == "SUBMITTED_BEFORE":
            err.print(f"[yellow]{escape(answer['message'])}[/]", soft_wrap=True)
            if not (sys.stdin.isatty() and err.is_terminal):
                fail("nothing was submitted. To submit the same rows once more: --again", exits.SUBMITTED_BEFORE)
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
            task = progress.add_task(f"Submitting {counted(self._checked.count, 'input')}", total=rows.tell())

            class Body:
                """The rows as the body of the request. Each try of the request reads them from the beginning."""

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
                unanswered=self._unanswered,
                content=Body(),
                headers={"content-type": NDJSON, "idempotency-key": self._key},
            )


def _progress(count: ProgressColumn) -> Progress:
    speed = TransferSpeedColumn() if isinstance(count, DownloadColumn) else TextColumn("")
    columns = (TextColumn("{task.description}"), BarColumn(), count, speed, TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True)
