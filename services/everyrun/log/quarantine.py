"""Make records of the quarantine: messages that could not be understood or stored, byte for byte, with the reason."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import msgspec

from everyrun.log.cloudevents import Record, record
from everyrun.log.events import MessageQuarantined
from everyrun.log.producer import MAX_RECORD_BYTES

#: Header of a record that was published again from the quarantine: the source of the message in the quarantine. If the
#: record still cannot be stored, this source shows that it is the same message.
RETRY_OF = "ce_everyrunretryof"

#: Headers that are never kept: each is a secret, or proves that the sender knows one.
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-extend-request-signature"}
)

#: Number of bytes to allow in a record for its own headers and key, and for the note about what was left out.
_AROUND = 64 << 10
#: Maximum number of characters of the reason.
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
    """Return a record for the topic ``quarantine``. The same ``source`` always gives the same event id.

    The record always fits the topic. Base64 makes a message a third larger, so a message over about 12 MiB is
    truncated, and the reason says so. A message that was read from the log remains complete in the log, at
    ``partition`` and ``offset``.
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
            event, reason=f"{event.reason} (only the first {most} of its {len(raw)} bytes are kept)"
        )
    event = msgspec.structs.replace(event, raw=base64.b64encode(raw[:most]).decode())
    return record("quarantine", event, key=source, id=source, source=service, time=time)
