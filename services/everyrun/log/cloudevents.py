"""CloudEvents 1.0 in Kafka's binary mode: attributes as ``ce_`` headers, the event's JSON as the value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from everyrun.log.upcast import dataschema

Headers = Sequence[tuple[str, bytes]]

#: An extension attribute of what came as a webhook: the time that Extend signed it with, in whole seconds.
SIGNED_TIME = "ce_signedtime"


class Record(NamedTuple):
    """What is written to a topic: key, value and headers; the topic's short name ('runs', without the prefix)."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


_encoder = msgspec.json.Encoder()


def event_type(event: msgspec.Struct) -> str:
    """The CloudEvents type of an event: its tag, for example ``run-observed``."""
    return str(type(event).__struct_config__.tag)


def record(
    topic: str, event: msgspec.Struct, *, key: str, id: str, source: str, time: str, subject: str | None = None
) -> Record:
    """Make the record of an event. ``id`` is deterministic, so that a consumer can drop repeats.

    ``source`` names the service, as a URI reference (``/everyrun/bridge``); ``time`` is RFC 3339 UTC.
    """
    return Record(
        topic,
        key.encode(),
        _encoder.encode(event),
        [
            ("ce_id", id.encode()),
            ("ce_subject", (subject or key).encode()),
            ("ce_time", time.encode()),
            *_fixed(event_type(event), source),
        ],
    )


@lru_cache(maxsize=256)
def _fixed(kind: str, source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", kind.encode()),
        ("ce_source", source.encode()),
        ("ce_dataschema", dataschema(kind).encode()),
        ("content-type", b"application/json"),
    )


def header(headers: Headers, name: str) -> str:
    """The value of one header as text, or '' where it is absent or not UTF-8."""
    for key, value in headers:
        if key == name:
            return value.decode("utf-8", "replace") if value else ""
    return ""


def timestamp(moment: datetime | float) -> str:
    """A time (aware datetime, or Unix seconds) as RFC 3339 UTC with milliseconds."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    # strftime, which reads better, takes ten times as long; this is asked several times a record.
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
