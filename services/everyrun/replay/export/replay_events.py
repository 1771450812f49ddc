"""Replay events: open the source and the target, resume from the checkpoint, and publish the selected events."""

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
from everyrun.replay.errors import TargetError
from everyrun.replay.export import foreign_topics, targets
from everyrun.replay.export.publish import CheckpointFile, LogSource, publish, skip_other_times
from everyrun.replay.export.selection import EventSelection, Source, scope_of, selected_ranges
from everyrun.replay.export.targets import Target
from everyrun.replay.progress import OnProgress, no_progress
from everyrun.settings import Settings


def kind_of(to: str) -> Literal["topic", "url", "file"]:
    """Return the kind of target that a text names.

    A text that begins with ``http://`` or ``https://`` is a URL. A text that contains a slash, ends in .ndjson or
    .jsonl, or is ``-`` is a file. Any other text is a topic.
    """
    if to.startswith(("http://", "https://")):
        return "url"
    return "file" if to == "-" or "/" in to or to.endswith((".ndjson", ".jsonl")) else "topic"


def checkpoint_path(
    settings: Settings, data_dir: Path, to: str, selection: EventSelection, from_archive: str | None
) -> Path:
    """Return the path of a replay's checkpoint. Target, source and selection determine the path."""
    source = from_archive or settings.kafka_bootstrap + settings.topic_prefix
    identity = repr((to, source, selection)).encode()
    return data_dir / "replays" / f"{hashlib.sha256(identity).hexdigest()[:16]}.json"


def refuse_own(settings: Settings, to: str) -> None:
    """Raise TargetError if the target is a topic of this installation. Does not connect to Kafka."""
    if kind_of(to) == "topic" and to in {settings.topic(topic.name) for topic in topics.declared()}:
        raise TargetError(f"{to} is a topic of this Everyrun, which would process replayed events as new ones")


async def replay(
    settings: Settings,
    selection: EventSelection,
    to: str | None,
    *,
    from_archive: str | None = None,
    checkpoint: Path | None = None,
    rate: float | None = None,
    on_progress: OnProgress = no_progress,
    on_resume: Callable[[int], None] = lambda published: None,
    force: bool = False,
) -> Counter[str]:
    """Deliver the selected events to the target, and count them. Without a target, only count them.

    Each key of the result is a topic and an event type, for example ``runs run-observed``.

    If a ``checkpoint`` file is given, an interrupted replay resumes, and ``on_resume`` is called with the number of
    events that were published before the interruption. Unless ``force``, a topic of an Everyrun installation is refused
    as the target.

    Raises TargetError, SelectionError, ArchiveError, aiokafka.errors.KafkaError.
    """
    source: Source
    wanted = {*selection.topics, "batches"}
    if from_archive:
        source = reader = await ArchiveReader.open(from_archive)
        available = reader.bounds(wanted)
        ranges = selected_ranges(selection, available)
    else:
        source = LogSource(settings)
        limits = await bounds(settings, wanted)
        available = {partition: (limits.first[partition], end) for partition, end in limits.end.items()}
        ranges = await skip_other_times(settings, selection, selected_ranges(selection, available))
    scope = await scope_of(selection, source, available)
    checkpoint_file = CheckpointFile(checkpoint)
    if checkpoint_file.checkpoint.published:
        on_resume(checkpoint_file.checkpoint.published)
    async with AsyncExitStack() as stack:
        target = None if to is None else await _open_target(stack, settings, to, checkpoint_file, force)
        return await publish(
            source, ranges, selection, scope, target, checkpoint_file, rate=rate, on_progress=on_progress
        )


async def _open_target(
    stack: AsyncExitStack, settings: Settings, to: str, checkpoint_file: CheckpointFile, force: bool
) -> Target:
    kind = kind_of(to)
    if kind == "topic":
        unprefixed = settings.model_copy(update={"topic_prefix": ""})
        try:
            found = await partitions(unprefixed, [to])
        except UnknownTopicOrPartitionError:
            raise TargetError(
                f"there is no topic {to}; create it first, because replay does not create topics"
            ) from None
        if not force:
            refuse_own(settings, to)
            reason = await foreign_topics.reason_to_refuse(unprefixed, to, [part.partition for part in found])
            if reason is not None:
                raise TargetError(
                    f"{reason}, which would process replayed events as new ones. Replay to a topic that is empty or "
                    "has only replays; to write to this topic anyway, use: everyrun replay --force"
                )
        return targets.ToTopic(await stack.enter_async_context(Producer(unprefixed, linger_ms=5)), to)
    if kind == "url":
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        return targets.ToUrl(http, to, settings.replay_secret.get_secret_value())
    # Write the checkpoint before creating the target file. If this process is then killed, the next one sees from the
    # checkpoint that the file belongs to this replay.
    checkpoint_file.write()
    file = targets.ToFile(to, checkpoint_file.checkpoint.size)
    stack.callback(file.close)
    return file
