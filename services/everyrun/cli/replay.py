"""``everyrun replay``: chosen events of the log again, to a topic, an HTTP address or a file."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from everyrun.cli.arguments import DataDir
from everyrun.cli.backends import run, settings_of
from everyrun.cli.console import err, fail, out, print_table

if TYPE_CHECKING:
    from everyrun.settings import Settings


def replay(
    to: Annotated[
        str, typer.Option("--to", metavar="TOPIC|URL|FILE", help="A topic's full name, http(s)://…, or a path (-).")
    ],
    batch: Annotated[str | None, typer.Option(help="Only events about this batch.")] = None,
    submission: Annotated[str | None, typer.Option(help="Only events about this submission.")] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="Only events of this type, for example run-observed; again.")
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Only of this topic, for example results; again. batches, runs, deliveries, quarantine."),
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Appended at or after this time.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Appended before this time.")] = None,
    from_offsets: Annotated[
        str | None, typer.Option(metavar="OFFSETS", help="Only these partitions: runs:0=400,runs:1=20..90")
    ] = None,
    from_archive: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="Read an archive, not Kafka (everyrun archive).")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Events a second at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be published.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="From the beginning, though a run like this was ended.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Allow a topic of an Everyrun, which takes replays as new events.")
    ] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Publish selected events again, marked as replays.

    On a topic the mark is the header `ce_everyrunreplay` (`runs/3/1234`); key, value and the other headers stay. To
    an HTTP address each event is a POST of CloudEvents JSON, signed as Standard Webhooks with EVERYRUN_REPLAY_SECRET;
    in a file it is a line. Killed and called again in the same way, it goes on from where it was.

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
            since=_time(since, "--since"),
            until=_time(until, "--until"),
            offsets=parse_offsets(from_offsets) if from_offsets else {},
        )
    except SelectionError as error:
        raise typer.BadParameter(str(error)) from None
    settings = _settings(data_dir, to, from_archive, dry_run)
    kind = replay_events.kind_of(to)
    if not force:
        try:
            replay_events.refuse_own(settings, to)
        except TargetError as error:
            fail(f"{error}. --force, if that is meant.")
    checkpoint = (
        None if dry_run or to == "-" else replay_events.checkpoint_path(settings, data_dir, to, selection, from_archive)
    )
    if checkpoint is not None and anew:
        checkpoint.unlink(missing_ok=True)
    if kind == "file" and checkpoint is not None and Path(to).exists() and not checkpoint.exists():
        fail(f"{to} is there already: take it away, or choose another")
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
                on_resume=_say_going_on,
                force=force,
            )
        )
    _show(counts, dry_run)


def _time(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    from everyrun.replay.times import TimeError, parse_time

    try:
        return parse_time(text)
    except TimeError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _settings(data_dir: Path, to: str, from_archive: str | None, dry_run: bool) -> Settings:
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


def _say_going_on(published: int) -> None:
    err.print(f"Going on: {published:,} events were published before.")


def _show(counts: Counter[str], dry_run: bool) -> None:
    said = "would be published" if dry_run else "published"
    if not counts:
        err.print(f"Nothing {said}: no event is of that kind.")
        return
    table = Table("topic", "type", "events")
    for name, count in sorted(counts.items()):
        table.add_row(*name.split(" ", 1), f"{count:,}")
    print_table(table, out if dry_run else err)
    err.print(f"{counts.total():,} events {said}.")
