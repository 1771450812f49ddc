"""Messages that could not be understood: kept as they were received, with the reason."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from everyrun.log.cloudevents import Record, record
from everyrun.log.events import MessageQuarantined

#: A record that is published again from the quarantine carries its source there, so that one that still cannot be
#: stored is the same message in the quarantine, and not one more.
RETRY_OF = "ce_everyrunretryof"

#: Headers that are never kept: they are, or prove the knowledge of, a secret.
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-extend-request-signature"}
)


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
    """The record for the topic ``quarantine``. The same ``source`` gives the same id, however often it is written."""
    kept = [(name, value) for name, value in headers if name.lower() not in _SECRET_HEADERS]
    event = MessageQuarantined(
        source=source,
        topic=topic,
        partition=partition,
        offset=offset,
        reason=reason,
        headers=kept,
        raw=base64.b64encode(raw).decode(),
        key=None if message_key is None else base64.b64encode(message_key).decode(),
    )
    return record("quarantine", event, key=source, id=source, source=service, time=time)
