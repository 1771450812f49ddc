"""A moment of the log: a time, or offsets. Both become, for each partition, the first offset that is not part of it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from everyrun.errors import Invalid
from everyrun.log.reading import Partition, bounds, offsets_at
from everyrun.replay.rebuild.engine import INPUTS
from everyrun.replay.times import TimeError, parse_time
from everyrun.settings import Settings

Moment = datetime | dict[Partition, int]

_OFFSET = re.compile(r"([a-z]+):(\d+)=(\d+)")


class MomentError(Invalid, ValueError):
    """The text is not a moment, or the log does not reach it; says what one looks like."""


def parse(text: str) -> Moment:
    """Return what a text names: a time, as :func:`parse_time` reads it, or the next offset of each partition.

    Offsets are written ``batches:0=12,runs:0=400``. Raises MomentError.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [_OFFSET.fullmatch(part) for part in parts]
    if all(found):
        offsets = {(m[1], int(m[2])): int(m[3]) for m in found if m}
        unknown = sorted({topic for topic, _ in offsets} - set(INPUTS))
        if unknown:
            raise MomentError(f"{', '.join(unknown)}: the tables are made from {', '.join(INPUTS)}")
        return offsets
    try:
        return parse_time(text)
    except TimeError as error:
        raise MomentError(f"{error}; or offsets (batches:0=12,runs:0=400)") from None


def text(offsets: dict[Partition, int]) -> str:
    """Offsets as :func:`parse` reads them; partitions at 0 are left out."""
    return ",".join(f"{topic}:{number}={offset}" for (topic, number), offset in sorted(offsets.items()) if offset)


async def offsets_of(settings: Settings, moment: Moment | None) -> dict[Partition, int]:
    """The end of the moment in every partition of the inputs; None is now.

    Of a time: the first offset appended after it, by the broker's clock. A partition that offsets do not name is
    at 0. Raises MomentError where the log ends before, and aiokafka.errors.KafkaError.
    """
    if isinstance(moment, datetime):
        # Appended at or after the next millisecond: Kafka's clock has no finer ones.
        whole = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
        return await offsets_at(settings, INPUTS, whole + timedelta(milliseconds=1))
    ends = (await bounds(settings, INPUTS)).end
    if moment is None:
        return ends
    for position, offset in sorted(moment.items()):
        if offset > ends.get(position, 0):
            where = f"{position[0]}:{position[1]}"
            raise MomentError(f"the log of {where} ends at {ends.get(position, 0)}, before {offset}")
    return {position: moment.get(position, 0) for position in ends}
