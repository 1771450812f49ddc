"""``everyrun replay``: publish selected events of the log again, to a topic, a URL or a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import run, settings_of
from everyrun.cli.console import err, fail, out, print_table
from everyrun.cli.rebuild import time_from

if TYPE_CHECKING:
    from everyrun.settings import Settings


def replay(
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TOPIC|URL|FILE", help="Full name of a topic, a URL, a path, or - for standard output."
        ),
    ],
    batch: Annotated[str | None, typer.Option(help="Only events of this batch.")] = None,
    submission: Annotated[str | None, typer.Option(help="Only events of this submission.")] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only events of this type, for example run-observed; can be repeated."),
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Topic to read; can be repeated. Default: batches, runs, deliveries, quarantine."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only events that were appended to the log at or after this time."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only events that were appended to the log before this time.")
    ] = None,
    from_offsets: Annotated[
        str | None,
        typer.Option(
            metavar="OFFSETS",
            help="Only these offsets, separated by commas: runs:0=400 (from 400 on), runs:1=20..90 (from 20 to 89).",
        ),
    ] = None,
    from_archive: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="Archive to read instead of Kafka.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Maximum number of events per second.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the events; publish nothing.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Start over instead of resuming.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Allow a topic of this Everyrun, which would process replays as new events."),
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Publish selected events again, marked as replays.

    A topic receives each record with an added header ce_everyrunreplay, which names the original record (such as
    runs/3/1234). The key, the value and the other headers are unchanged. A URL receives one POST of CloudEvents JSON
    per event, signed with EVERYRUN_REPLAY_SECRET as Standard Webhooks specifies. A file receives one line per event. An
    interrupted replay resumes when you run the command again.

    Example: everyrun replay --to audit-2026 --batch batch_01k... --since 2026-03-03T12:00:00Z
    """
    from everyrun.cli.progress_bar import bulk_progress
    from everyrun.projection.offsets import INPUTS
    from everyrun.replay.errors import SelectionError, TargetError
    from everyrun.replay.export import replay_events
    from everyrun.replay.export.selection import EventSelection, check_topics, parse_offsets

    try:
        selection = EventSelection(
            topics=check_topics(topic) if topic else INPUTS,
            batch=batch,
            submission=submission,
            types=tuple(sorted(type_ or ())),
            since=time_from(since, "--since"),
            until=time_from(until, "--until"),
            offsets=parse_offsets(from_offsets) if from_offsets else {},
        )
    except SelectionError as error:
        raise typer.BadParameter(str(error)) from None
    settings = _settings(data_dir, to, from_archive, dry_run)
    if not force:
        try:
            replay_events.refuse_own(settings, to)
        except TargetError as error:
            fail(f"{error}. To publish there anyway, add --force")
    checkpoint = (
        None if dry_run or to == "-" else replay_events.checkpoint_path(settings, data_dir, to, selection, from_archive)
    )
    if checkpoint is not None and anew:
        checkpoint.unlink(missing_ok=True)
    is_file = replay_events.kind_of(to) == "file"
    if is_file and checkpoint is not None and Path(to).exists() and not checkpoint.exists():
        fail(f"the file {to} exists: delete it, or choose another name")
    with bulk_progress("read", "records") as progress:
        counts = run(
            lambda: replay_events.replay(
                settings,
                selection,
                None if dry_run else to,
                from_archive=from_archive,
                checkpoint=checkpoint,
                rate=rate,
                on_progress=progress,
                on_resume=_report_resuming,
                force=force,
            )
        )
    _show(counts, dry_run)


def _settings(data_dir: Path, to: str, from_archive: str | None, dry_run: bool) -> Settings:
    """Return the settings that this replay needs. Kafka is needed only if it is read or written."""
    from everyrun.replay.export.replay_events import kind_of
    from everyrun.settings import SettingsError, load

    kind = kind_of(to)
    needs = [] if from_archive and (kind != "topic" or dry_run) else ["kafka_bootstrap"]
    needs += ["replay_secret"] if kind == "url" and not dry_run else []
    if "kafka_bootstrap" in needs:
        return settings_of(data_dir, *needs)
    try:
        return load().need(*needs)
    except SettingsError as error:
        fail(str(error))


def _report_resuming(published: int) -> None:
    err.print(f"Resuming after {published:,} events.")


def _show(counts: Counter[str], dry_run: bool) -> None:
    outcome = "would be published" if dry_run else "published"
    if not counts:
        err.print(f"No events {outcome}: the selection matches none.")
        return
    table = Table("topic", "type", "events")
    for topic_and_type, count in sorted(counts.items()):
        table.add_row(*topic_and_type.split(" ", 1), f"{count:,}")
    print_table(table, out if dry_run else err)
    err.print(f"{counts.total():,} events {outcome}.")
