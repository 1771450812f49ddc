"""Parse positions of the log as people write them: a time, or the next offset of each partition."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from everyrun.log.reading import Partition, bounds, offsets_at
from everyrun.projection.offsets import INPUTS
from everyrun.replay.errors import LogPositionError
from everyrun.replay.times import TimeError, parse_time
from everyrun.settings import Settings

LogPosition = datetime | dict[Partition, int]
"""A time, or the next offset of each partition. A partition that is not in the dictionary is at offset 0."""

_OFFSET = re.compile(r"([a-z]+):(\d+)=(\d+)")


def parse_position(text: str) -> LogPosition:
    """Parse a time (see :func:`parse_time`) or the next offset of each partition.

    Offsets are written ``batches:0=12,runs:0=400``. Raises LogPositionError if the text is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [_OFFSET.fullmatch(part) for part in parts]
    if all(found):
        offsets = {(m[1], int(m[2])): int(m[3]) for m in found if m}
        unknown = sorted({topic for topic, _ in offsets} - set(INPUTS))
        if unknown:
            raise LogPositionError(f"unknown topic {', '.join(unknown)}: the tables are made from {', '.join(INPUTS)}")
        return offsets
    try:
        return parse_time(text)
    except TimeError as error:
        raise LogPositionError(f"{error}; or offsets, for example batches:0=12,runs:0=400") from None


def format_offsets(offsets: dict[Partition, int]) -> str:
    """Write offsets in the form that :func:`parse_position` reads. Partitions at offset 0 are left out."""
    return ",".join(f"{topic}:{number}={offset}" for (topic, number), offset in sorted(offsets.items()) if offset)


async def resolve_offsets(settings: Settings, position: LogPosition | None) -> dict[Partition, int]:
    """Turn a position into the next offset of every partition of the input topics. None means the end of the log.

    The next offsets for a time are those after all records that the broker had appended up to then. Raises
    LogPositionError if the log ends before the given offsets. Raises aiokafka.errors.KafkaError.
    """
    if isinstance(position, datetime):
        # Kafka's timestamps are whole milliseconds, so look for the first record of a later millisecond.
        whole = position.replace(microsecond=position.microsecond // 1000 * 1000)
        return await offsets_at(settings, INPUTS, whole + timedelta(milliseconds=1))
    ends = (await bounds(settings, INPUTS)).end
    if position is None:
        return ends
    for (topic, number), offset in sorted(position.items()):
        end = ends.get((topic, number), 0)
        if offset > end:
            raise LogPositionError(f"the log of {topic}:{number} ends at {end}, before the offset {offset}")
    return {partition: position.get(partition, 0) for partition in ends}
