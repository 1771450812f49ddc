"""Make and read CloudEvents 1.0 in Kafka's binary mode: attributes are ``ce_`` headers, the value is JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from everyrun.log.upcast import dataschema

Headers = Sequence[tuple[str, bytes]]

#: Header of an event that was made from a webhook: the time in the webhook's signature, which is in whole seconds.
SIGNED_TIME = "ce_signedtime"


class Record(NamedTuple):
    """A record to be written; ``topic`` is the short name, without the prefix."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class LoggedEvent(NamedTuple):
    """An event read from the log, with the time and the id of its CloudEvents headers, and its partition."""

    event: msgspec.Struct
    time: datetime
    id: str = ""
    partition: int = 0


_encoder = msgspec.json.Encoder()


def event_type(event: msgspec.Struct) -> str:
    """Return the CloudEvents type of an event: its tag, for example ``run-observed``."""
    return str(type(event).__struct_config__.tag)


def record(
    topic: str, event: msgspec.Struct, *, key: str, id: str, source: str, time: str, subject: str | None = None
) -> Record:
    """Return the record of an event. ``id`` must be deterministic, so that a consumer can drop repeats.

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
    """Return the value of a header as text; '' if it is absent. Invalid UTF-8 becomes U+FFFD."""
    for key, value in headers:
        if key == name:
            return value.decode("utf-8", "replace") if value else ""
    return ""


def timestamp(moment: datetime | float) -> str:
    """Return a time (aware datetime, or Unix seconds) as RFC 3339 UTC with milliseconds."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    # strftime would take ten times as long, and this function runs several times per record.
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
