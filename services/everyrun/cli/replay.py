"""``everyrun replay``: chosen events of the log again, to a topic, an HTTP address or a file."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from everyrun.cli.bulk import bulk_progress
from everyrun.cli.client import DataDir
from everyrun.cli.console import err, fail, out
from everyrun.cli.direct import run, settings_of
from everyrun.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from everyrun.replay.publish import Keeper
    from everyrun.replay.selection import Selection
    from everyrun.replay.targets import Target


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="The log")(replay)


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
    force: Annotated[bool, typer.Option("--force", help="Also into a topic of Everyrun's own. Think twice.")] = False,
    data_dir: DataDir = Path(".everyrun"),
) -> None:
    """Publish chosen events again, each marked as a replay with its place in the log.

    On a topic the mark is the header `ce_everyrunreplay` (`runs/3/1234`); key, value and the other headers stay. To
    an HTTP address each event is a POST of CloudEvents JSON, signed as Standard Webhooks with EVERYRUN_REPLAY_SECRET;
    in a file it is a line. Killed and called again in the same way, it goes on from where it was.

    Example: everyrun replay --to audit-2026 --batch batch_01k... --since 2026-03-03T12:00:00Z
    """
    from everyrun.replay import selection as selecting

    try:
        selection = selecting.Selection(
            topics=selecting.known_topics(topic) if topic else selecting.INPUTS,
            batch=batch,
            submission=submission,
            types=tuple(sorted(type_ or ())),
            since=_time(since, "--since"),
            until=_time(until, "--until"),
            offsets=selecting.parse_offsets(from_offsets) if from_offsets else {},
        )
    except selecting.SelectionError as error:
        raise typer.BadParameter(str(error)) from None
    settings = _settings(data_dir, to, from_archive, dry_run)
    kind = _kind(to)
    if kind == "topic" and not force and to in _own_topics(settings):
        fail(f"{to} is a topic of Everyrun's own: what is written there is taken as new. --force, if that is meant.")
    place = None if dry_run or to == "-" else _place(settings, data_dir, to, selection, from_archive)
    if place is not None and anew:
        place.unlink(missing_ok=True)
    if kind == "file" and place is not None and Path(to).exists() and not place.exists():
        fail(f"{to} is there already: take it away, or choose another")
    with bulk_progress("read", "records") as progress:
        counts = run(lambda: _replay(settings, selection, to, kind, from_archive, place, rate, dry_run, progress))
    _show(counts, dry_run)


def _time(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time as 2026-03-03T12:00:00Z", param_hint=option) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _kind(to: str) -> str:
    if to.startswith(("http://", "https://")):
        return "url"
    return "file" if to == "-" or "/" in to or to.endswith((".ndjson", ".jsonl")) else "topic"


def _settings(data_dir: Path, to: str, from_archive: str | None, dry_run: bool) -> Settings:
    kind = _kind(to)
    needs = [] if from_archive and (kind != "topic" or dry_run) else ["kafka_bootstrap"]
    needs += ["replay_secret"] if kind == "url" and not dry_run else []
    if "kafka_bootstrap" in needs:
        return settings_of(data_dir, *needs)
    try:
        return load().need(*needs)
    except SettingsError as error:
        fail(str(error))


def _own_topics(settings: Settings) -> set[str]:
    from everyrun.log.topics import declared

    return {settings.topic(topic.name) for topic in declared()}


def _place(settings: Settings, data_dir: Path, to: str, selection: Selection, from_archive: str | None) -> Path:
    """Where the place of this replay is kept: another for each target, source and selection."""
    source = from_archive or settings.kafka_bootstrap + settings.topic_prefix
    said = repr((to, source, selection)).encode()
    return data_dir / "replays" / f"{hashlib.sha256(said).hexdigest()[:16]}.json"


async def _replay(
    settings: Settings,
    selection: Selection,
    to: str,
    kind: str,
    from_archive: str | None,
    place: Path | None,
    rate: float | None,
    dry_run: bool,
    progress: Any,
) -> Counter[str]:
    from everyrun.log.ranges import bounds
    from everyrun.replay import publish
    from everyrun.replay.archived import ArchiveReader
    from everyrun.replay.selection import Source, narrowed, subject_of

    source: Source
    wanted = {*selection.topics, "batches"}
    if from_archive:
        source = reader = await ArchiveReader.open(from_archive)
        has = reader.bounds(wanted)
    else:
        source = publish.LogSource(settings)
        limits = await bounds(settings, wanted)
        has = {place: (limits.first[place], end) for place, end in limits.end.items()}
    ranges = await publish.timed(settings, selection, narrowed(selection, has), live=not from_archive)
    subject = await subject_of(selection, source, has)
    keeper = publish.Keeper(place)
    if keeper.place.published:
        err.print(f"Going on: {keeper.place.published:,} events were published before.")
    async with AsyncExitStack() as stack:
        target = None if dry_run else await _target(stack, settings, to, kind, keeper)
        return await publish.replay(source, ranges, selection, subject, target, keeper, rate=rate, progress=progress)


async def _target(stack: AsyncExitStack, settings: Settings, to: str, kind: str, keeper: Keeper) -> Target:
    import httpx
    from aiokafka.errors import UnknownTopicOrPartitionError

    from everyrun.log.producer import Producer
    from everyrun.log.reader import partitions
    from everyrun.replay import targets

    if kind == "topic":
        plain = settings.model_copy(update={"topic_prefix": ""})
        try:
            await partitions(plain, [to])
        except UnknownTopicOrPartitionError:
            raise targets.TargetError(f"there is no topic {to}: make it first; replay makes none") from None
        return targets.ToTopic(await stack.enter_async_context(Producer(plain, linger_ms=5)), to)
    if kind == "url":
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        return targets.ToUrl(http, to, settings.replay_secret.get_secret_value())
    keeper.begin()
    file = targets.ToFile(to, keeper.place.size)
    stack.callback(file.close)
    return file


def _show(counts: Counter[str], dry_run: bool) -> None:
    said = "would be published" if dry_run else "published"
    if not counts:
        err.print(f"Nothing {said}: no event is of that kind.")
        return
    table = Table("topic", "type", "events")
    for name, count in sorted(counts.items()):
        table.add_row(*name.split(" ", 1), f"{count:,}")
    (out if dry_run else err).print(table)
    err.print(f"{counts.total():,} events {said}.")
