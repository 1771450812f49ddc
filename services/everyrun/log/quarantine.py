"""Messages that could not be understood: kept as they were received, with the reason."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import msgspec

from everyrun.log.cloudevents import Record, record
from everyrun.log.events import MessageQuarantined
from everyrun.log.producer import MAX_RECORD_BYTES

#: A record that is published again from the quarantine carries its source there, so that one that still cannot be
#: stored is the same message in the quarantine, and not one more.
RETRY_OF = "ce_everyrunretryof"

#: Headers that are never kept: they are, or prove the knowledge of, a secret.
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-extend-request-signature"}
)


#: What a record has besides its value, and the words about what was left out, at most.
_AROUND = 64 << 10
_REASON_MAX = 4000


def quarantined(
    *,
    source: str,
    topic: str,
    reason: str,
    raw: bytes,
    headers: Iterable[tuple[str, str]],
    time: str,
    service: str,
    partition: int | None = None,
    offset: int | None = None,
    message_key: bytes | None = None,
) -> Record:
    """The record for the topic ``quarantine``. The same ``source`` gives the same id, however often it is written.

    It always fits the topic: base64 makes the message a third larger, so of one over about 12 MiB only the beginning
    is kept, and the reason says so. One that came from the log is whole there, at ``partition`` and ``offset``.
    """
    kept = [(name, value) for name, value in headers if name.lower() not in _SECRET_HEADERS]
    event = MessageQuarantined(
        source=source,
        topic=topic,
        partition=partition,
        offset=offset,
        reason=reason[:_REASON_MAX],
        headers=kept,
        raw="",
        key=None if message_key is None else base64.b64encode(message_key).decode(),
    )
    room = MAX_RECORD_BYTES - _AROUND - len(msgspec.json.encode(event))
    if room < 0:
        event = msgspec.structs.replace(event, headers=[], key=None, reason=f"{event.reason} (without headers and key)")
        room = MAX_RECORD_BYTES - 2 * _AROUND
    most = room // 4 * 3
    if len(raw) > most:
        event = msgspec.structs.replace(
            event, reason=f"{event.reason} (only the first {most} of its {len(raw)} bytes are kept here)"
        )
    event = msgspec.structs.replace(event, raw=base64.b64encode(raw[:most]).decode())
    return record("quarantine", event, key=source, id=source, source=service, time=time)
