"""A replay from its beginning to its end: which events, read from where, handed to whom, and its place kept between."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import httpx
from aiokafka.errors import UnknownTopicOrPartitionError

from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.log.reading import bounds, partitions
from everyrun.replay.archive.reader import ArchiveReader
from everyrun.replay.export import foreign_topics, publish, targets
from everyrun.replay.export.publish import Keeper, Progress
from everyrun.replay.export.selection import Selection, Source, narrowed, subject_of
from everyrun.replay.export.targets import Target, TargetError
from everyrun.settings import Settings


def kind_of(to: str) -> Literal["topic", "url", "file"]:
    """What a target is: http(s)://… an address; ``-``, with a slash, .ndjson or .jsonl a file; else a topic."""
    if to.startswith(("http://", "https://")):
        return "url"
    return "file" if to == "-" or "/" in to or to.endswith((".ndjson", ".jsonl")) else "topic"


def place_of(settings: Settings, data_dir: Path, to: str, selection: Selection, from_archive: str | None) -> Path:
    """Where the place of this replay is kept: another for each target, source and selection."""
    source = from_archive or settings.kafka_bootstrap + settings.topic_prefix
    said = repr((to, source, selection)).encode()
    return data_dir / "replays" / f"{hashlib.sha256(said).hexdigest()[:16]}.json"


def refuse_own(settings: Settings, to: str) -> None:
    """Raise TargetError for a topic of this Everyrun's own: what is written there is taken as new. Asks nobody."""
    if kind_of(to) == "topic" and to in {settings.topic(topic.name) for topic in topics.declared()}:
        raise TargetError(f"{to} is a topic of Everyrun's own: what is written there is taken as new")


async def replay_to(
    settings: Settings,
    selection: Selection,
    to: str | None,
    *,
    from_archive: str | None = None,
    place: Path | None = None,
    rate: float | None = None,
    progress: Progress = lambda done, total: None,
    going_on: Callable[[int], None] = lambda published: None,
    force: bool = False,
) -> Counter[str]:
    """Hand the chosen events to the target; how many of each topic and type. Without a target they are only counted.

    With a ``place`` it goes on from where one like it was ended, and tells ``going_on`` how many were published
    before. A topic of an Everyrun is refused, this one's or another's, unless ``force``.
    Raises TargetError, SelectionError, ArchiveError, aiokafka.errors.KafkaError.
    """
    source: Source
    wanted = {*selection.topics, "batches"}
    if from_archive:
        source = reader = await ArchiveReader.open(from_archive)
        has = reader.bounds(wanted)
    else:
        source = publish.LogSource(settings)
        limits = await bounds(settings, wanted)
        has = {position: (limits.first[position], end) for position, end in limits.end.items()}
    ranges = await publish.timed(settings, selection, narrowed(selection, has), live=not from_archive)
    subject = await subject_of(selection, source, has)
    keeper = Keeper(place)
    if keeper.place.published:
        going_on(keeper.place.published)
    async with AsyncExitStack() as stack:
        target = None if to is None else await _target(stack, settings, to, keeper, force)
        return await publish.replay(source, ranges, selection, subject, target, keeper, rate=rate, progress=progress)


async def _target(stack: AsyncExitStack, settings: Settings, to: str, keeper: Keeper, force: bool) -> Target:
    kind = kind_of(to)
    if kind == "topic":
        plain = settings.model_copy(update={"topic_prefix": ""})
        try:
            there = await partitions(plain, [to])
        except UnknownTopicOrPartitionError:
            raise TargetError(f"there is no topic {to}: make it first; replay makes none") from None
        if not force:
            refuse_own(settings, to)
            why = await foreign_topics.reason_against(plain, to, [part.partition for part in there])
            if why is not None:
                raise TargetError(
                    f"{why}: what is replayed there would be taken as new. Replay to a topic that is empty or has only "
                    "replays; everyrun replay --force writes there all the same"
                )
        return targets.ToTopic(await stack.enter_async_context(Producer(plain, linger_ms=5)), to)
    if kind == "url":
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        return targets.ToUrl(http, to, settings.replay_secret.get_secret_value())
    # The place first: a file that a killed run has only made is then known as its own.
    keeper.begin()
    file = targets.ToFile(to, keeper.place.size)
    stack.callback(file.close)
    return file
