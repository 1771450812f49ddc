"""``everyrun archive``: the log to Parquet, and whether it is still what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from everyrun.cli import exits
from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import run, settings_of
from everyrun.cli.console import err, fail, folding, out, print_table

if TYPE_CHECKING:
    from everyrun.replay.archive.verify import VerifyResult

archive_app = typer.Typer(
    invoke_without_command=True,
    help="Copy the log to Parquet, and verify the copy.",
)
From = Annotated[str, typer.Option("--from", metavar="DIR|URL", help="A folder, or s3://bucket/prefix.")]


@archive_app.callback()
def archive(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="A folder, or s3://bucket/prefix.")] = "",
    topic: Annotated[
        list[str] | None, typer.Option(help="Only this topic, for example runs; may be given again.")
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(help="Sign the newest manifest with this private key (everyrun archive keygen).")
    ] = None,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Copy what the log has that the archive does not have yet; goes on from where the last run ended.

    May be killed at any moment and run again. An object store takes its credentials and endpoint from the
    environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

    Example: everyrun archive --to /backup/everyrun --sign-key everyrun.key
    """
    if context.invoked_subcommand is not None:
        return
    if not to:
        raise typer.BadParameter("--to DIR|URL says where the archive is", param_hint="--to")
    from everyrun.cli.progress_bar import bulk_progress
    from everyrun.replay.archive import writer as archives
    from everyrun.replay.archive.signing import KeyFileError, private_key

    unknown = set(topic or ()) - set(archives.archived_topics())
    if unknown:
        raise typer.BadParameter(f"not a topic that is kept: {', '.join(sorted(unknown))}", param_hint="--topic")
    try:
        key = private_key(sign_key) if sign_key else None
    except (KeyFileError, OSError) as error:
        fail(str(error))
    settings = settings_of(data_dir, "kafka_bootstrap")
    with bulk_progress("archived", "records") as progress:
        done = run(
            lambda: archives.archive(settings, to, topics=topic or (), sign_key=key, on_progress=progress),
        )
    if not done.files:
        err.print(f"Nothing new since manifest {done.number}." if done.number else "The log is empty.")
    else:
        err.print(f"{done.records:,} records in {done.files} files; the newest manifest is {done.number}.")
    if done.hash:
        typer.echo(done.hash)


@archive_app.command()
def verify(
    place: From,
    public_key: Annotated[Path | None, typer.Option(help="The newest manifest must be signed with this key.")] = None,
    head: Annotated[str | None, typer.Option(help="A manifest's hash noted earlier: must be in the chain.")] = None,
    against_log: Annotated[
        bool, typer.Option("--against-log", help="Compare every record with the live log too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was found as JSON.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Find every record or file of an archive that is missing, changed, added or reordered, and name it.

    Ends with 0 where all is as it was written, with 1 where it is not, with 2 where that could not be found out, with 4
    where there is no archive.

    Example: everyrun archive verify --from /backup/everyrun --public-key everyrun.key.pub
    """
    from everyrun.cli.progress_bar import bulk_progress
    from everyrun.replay.archive import verify as verifying
    from everyrun.replay.archive.signing import KeyFileError
    from everyrun.replay.archive.signing import public_key as read_key

    try:
        key = read_key(public_key) if public_key else None
    except (KeyFileError, OSError) as error:
        fail(str(error), exits.USAGE)
    settings = settings_of(data_dir, "kafka_bootstrap") if against_log else None
    with bulk_progress("verified", "records") as progress:
        found = run(
            lambda: verifying.verify(place, public_key=key, head=head, against_log=settings, on_progress=progress),
            exits.USAGE,
        )
    if as_json:
        findings = [finding._asdict() for finding in found.findings]
        typer.echo(json.dumps({**found._asdict(), "findings": findings}, indent=2))
    else:
        _show(found)
    if found.findings:
        raise typer.Exit(exits.ERROR)


def _show(found: VerifyResult) -> None:
    for finding in found.findings:
        out.print(f"[red]{escape(str(finding))}[/]", soft_wrap=True)
    for note in found.notes:
        err.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    verdict = f"{len(found.findings)} differences" if found.findings else "All is as it was written"
    signed = f", signed up to manifest {found.signed}" if found.signed else ""
    out.print(
        f"{verdict}: {found.records:,} records in {found.files} files, manifests 1 to {found.number}{signed}; "
        f"newest {found.hash}",
        soft_wrap=True,
    )


@archive_app.command(name="list")
def list_files(
    place: From,
    as_json: Annotated[bool, typer.Option("--json", help="The manifests as JSON lines.")] = False,
) -> None:
    """List what an archive has: a line a file.

    Example: everyrun archive list --from /backup/everyrun
    """
    import msgspec

    from everyrun.replay.archive.reader import ArchiveReader

    chain = run(lambda: ArchiveReader.open(place)).manifests
    if as_json:
        for manifest in chain:
            typer.echo(msgspec.json.encode(manifest))
        return
    table = Table("number", "topic", "day", "records", folding("partitions: offsets"), "KiB")
    for manifest in chain:
        offsets = "  ".join(f"{c.partition}: {c.first}..{c.end - 1}" for c in manifest.partitions)
        row = (str(manifest.number), manifest.topic, manifest.day, f"{manifest.count:,}", offsets)
        table.add_row(*row, f"{manifest.bytes // 1024:,}")
    print_table(table)


@archive_app.command()
def keygen(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the private key goes; the public one to FILE.pub")
    ],
) -> None:
    """Make a pair of Ed25519 keys: keep FILE to yourself, give FILE.pub to whoever verifies.

    Example: everyrun archive keygen everyrun.key
    """
    from everyrun.replay.archive.signing import make_keys

    try:
        public = make_keys(file)
    except OSError as error:
        fail(f"{error.filename or file}: {error.strerror}")
    err.print(f"{file} signs (keep it secret), {public} verifies (give it away).")
