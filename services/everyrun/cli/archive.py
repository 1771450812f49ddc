"""``everyrun archive``: copy the log to Parquet files; verify, list and sign the copy."""

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

archive_app = typer.Typer(invoke_without_command=True)
Source = Annotated[
    str, typer.Option("--from", metavar="DIR|URL", help="Folder or s3://bucket/prefix that holds the archive.")
]


@archive_app.callback()
def archive(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="Folder or s3://bucket/prefix to write to.")] = "",
    topic: Annotated[
        list[str] | None, typer.Option(help="Topic to copy, for example runs; can be repeated. Default: all topics.")
    ] = None,
    sign_key: Annotated[Path | None, typer.Option(help="File with the private key that signs the manifest.")] = None,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Copy the log to Parquet files, and verify the copy.

    The command adds the records that the archive does not contain yet. Each file of the archive has a manifest, which
    describes the file and contains the hash of the manifest before it. The command prints the hash of the newest one.
    If the command is interrupted, run it again. For an s3:// URL, the environment must contain the credentials and
    the endpoint (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

    Example: everyrun archive --to /backup/everyrun --sign-key everyrun.key
    """
    if context.invoked_subcommand is not None:
        return
    if not to:
        raise typer.BadParameter("name the folder or the s3:// URL to write to: --to DIR|URL", param_hint="--to")
    from everyrun.cli.progress_bar import bulk_progress
    from everyrun.replay.archive import writer
    from everyrun.replay.archive.signing import KeyFileError, private_key

    archived = writer.archived_topics()
    unknown = set(topic or ()) - set(archived)
    if unknown:
        raise typer.BadParameter(
            f"no archived topic: {', '.join(sorted(unknown))}. Choose from: {', '.join(archived)}",
            param_hint="--topic",
        )
    try:
        key = private_key(sign_key) if sign_key else None
    except (KeyFileError, OSError) as error:
        fail(str(error))
    settings = settings_of(data_dir, "kafka_bootstrap")
    with bulk_progress("archived", "records") as progress:
        added = run(
            lambda: writer.archive(settings, to, topics=topic or (), sign_key=key, on_progress=progress),
        )
    if added.files:
        err.print(f"{added.records:,} records in {added.files} files; the newest manifest is {added.number}.")
    elif added.number:
        err.print(f"Nothing new since manifest {added.number}.")
    else:
        err.print("The log is empty.")
    if added.hash:
        typer.echo(added.hash)


@archive_app.command()
def verify(
    source: Source,
    public_key: Annotated[
        Path | None, typer.Option(help="File with the public key that verifies the newest manifest's signature.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Hash of a manifest that you noted earlier. The archive must still contain it.")
    ] = None,
    against_log: Annotated[
        bool, typer.Option("--against-log", help="Also compare every record with the live log.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Find what is missing, changed, added or reordered in an archive.

    Exit codes: 0 the archive is intact; 1 it is not; 2 it could not be verified; 4 there is no archive.

    Example: everyrun archive verify --from /backup/everyrun --public-key everyrun.key.pub
    """
    from everyrun.cli.progress_bar import bulk_progress
    from everyrun.replay.archive import verify as verification
    from everyrun.replay.archive.signing import KeyFileError
    from everyrun.replay.archive.signing import public_key as read_key

    try:
        key = read_key(public_key) if public_key else None
    except (KeyFileError, OSError) as error:
        fail(str(error), exits.USAGE)
    settings = settings_of(data_dir, "kafka_bootstrap") if against_log else None
    with bulk_progress("verified", "records") as progress:
        result = run(
            lambda: verification.verify(source, public_key=key, head=head, against_log=settings, on_progress=progress),
            exits.USAGE,
        )
    if as_json:
        findings = [finding._asdict() for finding in result.findings]
        typer.echo(json.dumps({**result._asdict(), "findings": findings}, indent=2))
    else:
        _show(result)
    if result.findings:
        raise typer.Exit(exits.ERROR)


def _show(result: VerifyResult) -> None:
    for finding in result.findings:
        out.print(f"[red]{escape(str(finding))}[/]", soft_wrap=True)
    for note in result.notes:
        err.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    verdict = f"{len(result.findings)} defects" if result.findings else "The archive is intact"
    signed = f", signed up to manifest {result.signed}" if result.signed else ""
    out.print(
        f"{verdict}: {result.records:,} records in {result.files} files, manifests 1 to {result.number}{signed}; "
        f"newest {result.hash}",
        soft_wrap=True,
    )


@archive_app.command(name="list")
def list_files(
    source: Source,
    as_json: Annotated[bool, typer.Option("--json", help="Write the manifests as JSON, one per line.")] = False,
) -> None:
    """List the files of an archive, one per line.

    Example: everyrun archive list --from /backup/everyrun
    """
    import msgspec

    from everyrun.replay.archive.reader import ArchiveReader

    manifests = run(lambda: ArchiveReader.open(source)).manifests
    if as_json:
        for manifest in manifests:
            typer.echo(msgspec.json.encode(manifest))
        return
    table = Table("number", "topic", "day", "records", folding("partitions: offsets"), "KiB")
    for manifest in manifests:
        offsets = "  ".join(f"{c.partition}: {c.first}..{c.end - 1}" for c in manifest.partitions)
        row = (str(manifest.number), manifest.topic, manifest.day, f"{manifest.count:,}", offsets)
        table.add_row(*row, f"{manifest.bytes // 1024:,}")
    print_table(table)


@archive_app.command()
def keygen(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write the private key to. The public key goes to FILE.pub.")
    ],
) -> None:
    """Make a pair of Ed25519 keys, to sign and verify archives.

    FILE contains the private key, which signs archives: keep it secret. FILE.pub contains the public key, which
    verifies them: give it to everyone who verifies an archive.

    Example: everyrun archive keygen everyrun.key
    """
    from everyrun.replay.archive.signing import make_keys

    try:
        public = make_keys(file)
    except OSError as error:
        fail(f"the keys could not be written to {error.filename or file}: {error.strerror}")
    err.print(f"Made {file}, which signs (keep it secret), and {public}, which verifies (give it to auditors).")
