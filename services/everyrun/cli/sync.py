"""Define ``everyrun sync``: submit what is new or changed in a folder or bucket."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Workflow
from everyrun.cli.client import PATIENCE, Client, Target, find
from everyrun.cli.console import counted, err, fail, out, say_unchecked

if TYPE_CHECKING:
    from everyrun.cli.looks import Changes, Look

#: Maximum number of objects in one submission. The service accepts no more.
_MAX = 100_000
#: How often a sync looks again because another sync of the same source was faster.
_TRIES = 5


def sync(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, or an s3://, gs:// or az:// prefix.")],
    workflow: Workflow = None,
    workflow_version: Annotated[str | None, typer.Option(help="A number, or draft. Default: newest published.")] = None,
    priority: Annotated[int, typer.Option(min=1, max=100, help="Lower numbers are sent first.")] = 90,
    include: Annotated[list[str] | None, typer.Option(help="Send only files that match, such as '*.pdf'.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Do not send files and folders that match, such as drafts/.")
    ] = None,
    settle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time between the first two looks at the source.")
    ] = 10.0,
    watch: Annotated[bool, typer.Option("--watch", help="Continue: look again and again, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="With --watch: time between two looks.")
    ] = 60.0,
    list_skipped: Annotated[bool, typer.Option("--list-skipped", help="Name every file that is left out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is new and changed, but submit nothing.")
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Submit what is new or changed in a folder or bucket.

    The service remembers, for each source and workflow, which version of each file was submitted: the ETag of an
    object, the size and time of a file. A changed file is submitted as a new input. Files that were deleted are only
    counted. A file is submitted only if it is the same in two looks at the source, because it may be incomplete before.

    Run the command as often as you like, and again after an interruption: no version of a file is submitted twice, and
    none is left out. It prints the id of each submission; if nothing is new, it prints none.

    Example: everyrun sync s3://invoices/inbox --workflow workflow_abc --watch
    """
    from everyrun.cli import checks, looks, manifest
    from everyrun.cli.upload import UploadFailedError
    from everyrun.objects import ObjectAddressError

    checks.sendable(workflow=workflow, workflow_version=workflow_version)
    try:
        kind = manifest.source_kind(source)
        if kind == "manifest":
            fail(f"{source} is a manifest: sync needs a folder or a bucket. To submit it: everyrun submit", exits.USAGE)
        target = find(data_dir)
        workflow_id = workflow or target.workflow_id
        if not workflow_id:
            fail("--workflow is needed: the id of a workflow at Extend (workflow_...)", exits.USAGE)
        name = looks.name_of(source, kind == "bucket")
        query: dict[str, Any] = {"source": name, "workflow_id": workflow_id, "priority": priority}
        query |= {"workflow_version": workflow_version} if workflow_version else {}
        with Client(target) as client:
            _Sync(
                client, target, data_dir, query, source, kind == "bucket", include or [], exclude or [], list_skipped
            ).run(settle, every if watch else None, dry_run)
    except KeyboardInterrupt:
        err.print("Stopped. The next sync continues where this one ended.")
        raise typer.Exit(exits.INTERRUPTED) from None
    except manifest.ManifestError as error:
        checks.fail_on(error)
    except ObjectAddressError as error:
        fail(f"{source} {error}", exits.USAGE)
    except UploadFailedError as error:
        checks.show_files(error.files)
        fail(f"{error}; no other file was submitted. What was uploaded is remembered")


class _Sync:
    """The sync of one source to one workflow."""

    def __init__(
        self,
        client: Client,
        target: Target,
        data_dir: Path,
        query: dict[str, Any],
        source: str,
        is_bucket: bool,
        include: list[str],
        exclude: list[str],
        list_skipped: bool,
    ) -> None:
        self._client, self._target, self._data_dir = client, target, data_dir
        self._query = query
        self._source, self._is_bucket = source, is_bucket
        self._include, self._exclude, self._list_skipped = include, exclude, list_skipped
        self._what = "object" if is_bucket else "file"

    def run(self, settle: float, every: float | None, dry_run: bool) -> None:
        """Look twice and submit. If ``every`` is given, look again after that many seconds, and submit each time."""
        from everyrun.cli.manifest import ManifestError

        before = self._look()
        if every is None:
            err.print(f"Found {counted(len(before.items), self._what)}; looking again in {settle:g} s")
        wait = settle
        while True:
            time.sleep(wait)
            try:
                now = self._look()
            except ManifestError as error:
                if every is None:
                    raise
                # A later look may succeed.
                err.print(f"[yellow]{escape(str(error))}[/]", soft_wrap=True)
            else:
                before = self._submit_changes(before, now, dry_run)
            if every is None:
                return
            wait = every

    def _look(self) -> Look:
        from everyrun.cli import looks

        return looks.look(self._source, self._is_bucket, self._include, self._exclude)

    def _submit_changes(self, before: Look, now: Look, dry_run: bool) -> Look:
        """Submit what is new or changed, and return the newest look."""
        from everyrun.cli.looks import compare

        # A file must be the same in the newest look and in the look before, so the time between the two only grows.
        for _ in range(_TRIES):
            submitted = self._submitted()
            changes = compare(before, now, submitted)
            self._show(now, changes)
            if dry_run:
                err.print("Nothing was submitted.")
                return now
            if self._submit(now, sorted([*changes.new, *changes.changed]), submitted):
                return now
            err.print("[yellow]Another sync of this source submitted some of them meanwhile; looking again[/]")
            now = self._look()
        fail("other syncs of this source are faster each time: run only one at a time")

    def _submitted(self) -> dict[str, str]:
        """Return the versions that were submitted before, by id."""
        url = f"{self._target.submission_url}/v1/syncs"
        query = {name: self._query[name] for name in ("source", "workflow_id")}
        rows = self._client.every(url, "objects", PATIENCE, **query, limit=10_000)
        return {row["object"]: row["version"] for row in rows}

    def _show(self, now: Look, changes: Changes) -> None:
        from everyrun.cli.checks import show_skipped

        text = (
            f"{len(changes.new)} new, {len(changes.changed)} changed, {changes.known} submitted before, "
            f"{len(changes.gone)} gone"
        )
        if changes.unstable:
            text += f", {len(changes.unstable)} still changing (left for the next look)"
        left_out = sum(map(len, now.skipped.values()))
        err.print(f"{counted(len(now.items), self._what)}: {text}; {left_out} left out", soft_wrap=True)
        show_skipped(now.skipped, self._list_skipped)

    def _submit(self, now: Look, names: list[str], submitted: Mapping[str, str]) -> bool:
        """Submit these files or objects; return False if another sync was faster."""
        if names and self._is_bucket:
            from everyrun.cli.bucket import BucketObject

            first = now.items[names[0]].item
            assert isinstance(first, BucketObject)
            self._client.check_object(str(first.address), PATIENCE)
        for start in range(0, len(names), _MAX):
            part = names[start : start + _MAX]
            with tempfile.TemporaryFile() as rows:
                count = self._write_rows(now, part, submitted, rows)
                if count and not self._send(rows, count):
                    return False
        return True

    def _write_rows(self, now: Look, names: list[str], submitted: Mapping[str, str], rows: IO[bytes]) -> int:
        """Write the rows of a submission, and return how many. Local files are uploaded first."""
        import msgspec

        from everyrun.cli import sending
        from everyrun.cli.bucket import BucketObject
        from everyrun.cli.folder import Document
        from everyrun.cli.looks import version_of
        from everyrun.cli.manifest import Local, object_row

        items = {name: now.items[name] for name in names}
        documents = {name: seen.item for name, seen in items.items() if isinstance(seen.item, Document)}
        local = [Local(document.path, document.name, None) for document in documents.values()]
        if local:
            self._client.check_workflow(self._query["workflow_id"], self._query.get("workflow_version"), PATIENCE)
        ids = dict(zip(documents, sending.upload(local, self._target, self._data_dir, False), strict=True))
        count = 0
        for name, seen in items.items():
            if isinstance(seen.item, BucketObject):
                row = object_row(seen.item)
            elif version_of(seen.item) != seen.version:
                # It changed during the upload, so what was uploaded may be incomplete.
                continue
            else:
                row = {"id": name, "file": {"id": ids[name]}, "metadata": {"path": seen.item.shown}}
            row["synced"] = {"version": seen.version, "was": submitted.get(name)}
            rows.write(msgspec.json.encode(row) + b"\n")
            count += 1
        if count < len(names):
            err.print(f"{counted(len(names) - count, 'file')} changed during the upload: left for the next look")
        return count

    def _send(self, rows: IO[bytes], count: int) -> bool:
        """Submit rows; return False if another sync was faster. Prints the id of the submission."""
        from everyrun.cli.checks import show_bad_rows
        from everyrun.submission.intake.parse import NDJSON

        rows.seek(0)
        body = rows.read()
        answer = self._client.answer(
            "POST",
            f"{self._target.submission_url}/v1/syncs",
            params=self._query,
            within=PATIENCE,
            unanswered="It is not known if they were submitted. Run the same sync again: it submits nothing twice",
            content=body,
            headers={"content-type": NDJSON, "idempotency-key": f"sync-{secrets.token_hex(16)}"},
        )
        if answer.get("code") == "SYNCED_MEANWHILE":
            return False
        if "bad_rows" in answer:
            show_bad_rows(answer["bad_rows"], answer["rows"])
            raise typer.Exit(exits.ERROR)
        out.print(answer["submission_id"])
        err.print(f"{counted(count, 'input')} submitted, in {counted(answer['batches'], 'batch', 'batches')}")
        say_unchecked(answer)
        return True
