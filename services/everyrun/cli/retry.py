"""Define ``everyrun retry`` and ``everyrun tries``: send settled inputs again, and show an input's tries."""

from __future__ import annotations

import json
import secrets
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir, Json, SubmissionId, Why
from everyrun.cli.client import PATIENCE, Client, Target, find
from everyrun.cli.console import confirm, counted, err, fail, folding, print_table
from everyrun.cli.doubt import user_name
from everyrun.cli.id_file import read_ids


def retry(
    submission_id: SubmissionId,
    reason: Why,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only inputs with this status: FAILED, REJECTED, CANCELLED, REFUSED or MISSING. Repeatable."),
    ] = None,
    failure_reason: Annotated[
        list[str] | None, typer.Option(help="Only inputs with this failure_reason. Repeatable.")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Only inputs whose ids are in this file, one id on each line; - for stdin.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only inputs with this metadata: metadata.customer=7. Repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of inputs to send again.")] = None,
    new_files: Annotated[
        Path | None,
        typer.Option("--manifest", help="Manifest with new files for the inputs in it. Without --ids: only these."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Send inputs again that failed or were refused, cancelled or lost.

    These are the inputs that are FAILED, REJECTED, CANCELLED, REFUSED, or MISSING (Extend no longer has their run).
    The command shows how many meet all the conditions, and the credits that their runs so far cost. Then it asks, and
    sends all of them again.

    The inputs keep their ids and stay in the submission. The results show the newest try; for all of them see
    everyrun tries. If presigned links or passwords were removed, give new files with --manifest.

    Example: everyrun retry sub_01k... --status FAILED --where metadata.customer=7 --reason "prompt fixed"
    """
    body: dict[str, Any] = {"reason": reason, "by": user_name()}
    target = find(data_dir)
    files = _new_files(new_files, target, data_dir) if new_files else []
    chosen = read_ids(ids) if ids else [new["id"] for new in files]
    body["filter"] = {
        "statuses": [one.upper() for one in status or ()],
        "reasons": failure_reason or [],
        "ids": chosen,
        "where": _metadata(where or []),
        "limit": limit,
    }
    body["files"] = files
    with Client(target) as client:
        url = f"{target.submission_url}/v1/submissions/{submission_id}/retries"
        found = client.answer("POST", f"{url}/preview", within=PATIENCE, json=body)
        if as_json and dry_run:
            typer.echo(json.dumps(found, indent=2))
            return
        for line in describe(found):
            err.print(escape(line), soft_wrap=True)
        if dry_run or not found["inputs"]:
            return
        if found["needs_files"]:
            raise typer.Exit(exits.ERROR)
        confirm(yes, f"Send {counted(found['inputs'], 'input')} again?", "Nothing was sent")
        headers = {"idempotency-key": secrets.token_hex(16)}
        done = client.answer("POST", url, within=PATIENCE, json=body, headers=headers)
    if as_json:
        typer.echo(json.dumps(done, indent=2))
    err.print(
        f"Retry {done['retry']}: {counted(done['inputs'], 'input')} will be sent again. "
        f"Follow it with: everyrun watch {submission_id}",
        soft_wrap=True,
    )


def _metadata(given: list[str]) -> dict[str, str]:
    """Return the conditions on metadata, by path. Ends the command if one is not metadata.KEY=VALUE."""
    found = {}
    for condition in given:
        key, equals, value = condition.partition("=")
        path = key.removeprefix("metadata.")
        if not equals or path == key or not path:
            fail(f"--where {condition}: write it as metadata.KEY=VALUE, for example metadata.customer=7", exits.USAGE)
        found[path] = value
    return found


def _new_files(source: Path, target: Target, data_dir: Path) -> list[dict[str, Any]]:
    """Read a manifest, upload the local files that it names, and return the new files. Metadata are not used."""
    from everyrun.cli import checks, manifest, sending
    from everyrun.cli.upload import UploadFailedError

    try:
        with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as rows:
            checked = checks.read_manifest(str(source), checks.read_options(None, None, (), None, None), file)
            checked.write(sending.upload(checked.files, target, data_dir, False), rows)
            rows.seek(0)
            given = [json.loads(line) for line in rows]
    except manifest.ManifestError as error:
        checks.fail_on(error)
    except UploadFailedError as error:
        fail(f"{error}; nothing was sent")
    missing = next((number for number, row in enumerate(given, 1) if not row.get("id")), None)
    if missing:
        fail(f"{source}: row {missing} has no id; each row needs the id of the input that it is for", exits.USAGE)
    return [{"id": row["id"], "file": row["file"]} for row in given]


def describe(found: dict[str, Any]) -> list[str]:
    """Return sentences that say what a retry would send again, and what it leaves out. Pure."""
    by_status = ", ".join(f"{number:,} {status}" for status, number in found["by_status"].items())
    lines = [f"{counted(found['inputs'], 'input')} will be sent again" + (f": {by_status}." if by_status else ".")]
    if not found["inputs"]:
        lines = ["No input meets the conditions, so nothing will be sent again."]
    if found["by_reason"]:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in found["by_reason"].items())
        lines.append(f"Their failure reasons: {reasons}.")
    if found["credits"]:
        lines.append(f"Their runs so far cost {found['credits']:g} credits; a new try costs credits again.")
    if found["not_chosen"]:
        shown = ", ".join(f"{one['id']} ({one['status']})" for one in found["not_chosen_ids"][:5])
        lines.append(f"Not sent again: {counted(found['not_chosen'], 'id')} of those given: {shown}{_more(found)}.")
    if found["needs_files"]:
        shown = ", ".join(found["needs_files_ids"][:5]) + (", …" if found["needs_files"] > 5 else "")
        lines.append(
            f"{counted(found['needs_files'], 'input')} cannot be sent again, because presigned links or passwords were "
            f"removed: {shown}. Write a manifest with the columns id and url (or path), and add: --manifest FILE"
        )
    return lines


def _more(found: dict[str, Any]) -> str:
    return ", …" if found["not_chosen"] > 5 else ""


def tries(
    input_id: Annotated[str, typer.Argument(metavar="INPUT", help="Id of an input: SUBMISSION:ID.")],
    as_json: Json = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Show every try of an input, with its attempts and runs, the newest last.

    Example: everyrun tries sub_01k...:invoice-7
    """
    with Client(find(data_dir)) as client:
        found = client.get(f"{client.target.query_url}/v1/tries/{input_id}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("try", "requested", "attempt", "state", "run", "status", "credits", folding("reason"))
    for one in found["tries"]:
        for row in one["attempts"] or [{}]:
            table.add_row(*map(escape, try_row(one, row)))
    print_table(table)


def try_row(one: dict[str, Any], attempt: dict[str, Any]) -> list[str]:
    """Return the cells of one attempt of a try. Pure."""
    by = f" by {one['by']}" if one["by"] else ""
    requested = f"{(one['requested_at'] or '')[:16].replace('T', ' ')}{by}"
    why = attempt.get("failure_reason") or attempt.get("reason") or (one["reason"] if not attempt else "")
    credits = attempt.get("credits")
    return [
        str(one["try"]),
        requested,
        str(attempt.get("attempt", "")),
        attempt.get("state", "WAITING"),
        attempt.get("run_id") or "",
        attempt.get("status") or "",
        "" if credits is None else f"{credits:g}",
        why or "",
    ]
