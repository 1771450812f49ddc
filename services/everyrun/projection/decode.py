"""From records of the log to what :mod:`everyrun.projection.apply` works with. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import header
from everyrun.log.upcast import TooNewError, upcast
from everyrun.projection.rules.merge import FINAL, Binding, Run, instant, order_of, own_time, trimmed


class LogRecord(Protocol):
    """A record as aiokafka reads it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int


class Poll(NamedTuple):
    """Records of one partition, in order and without a gap; ``topic`` is the short name, without the prefix."""

    topic: str
    partition: int
    records: Sequence[LogRecord]

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return self.records[0].offset

    @property
    def end(self) -> int:
        """Offset after the last record."""
        return self.records[-1].offset + 1


class NotUnderstoodError(Exception):
    """The record is not an event of its topic; the text says why and goes to the quarantine."""


class Fact(NamedTuple):
    """An event of ``batches``, ``deliveries`` or ``quarantine`` with the time and the id of its CloudEvents headers.

    ``partition`` is where it was read.
    """

    event: msgspec.Struct
    time: datetime
    id: str = ""
    partition: int = 0


_batch_decoder = msgspec.json.Decoder(events.BatchEvent)
_run_decoder = msgspec.json.Decoder(events.RunEvent)
_delivery_decoder = msgspec.json.Decoder(events.DeliveryDeferred)
_quarantine_decoder = msgspec.json.Decoder(events.QuarantineEvent)
_metadata_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_reserved_decoder = msgspec.json.Decoder(reserved.Reserved)
_encode = msgspec.json.Encoder().encode
_RESERVED = b'"' + reserved.PREFIX.encode()


class _Usage(msgspec.Struct):
    credits: Any = None


class _RunHead(msgspec.Struct):
    """The fields of a WorkflowRun that have columns (SDK 1.20.0, types/workflow_run.py)."""

    id: str
    status: str
    batchId: str | None = None  # noqa: N815
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    failureReason: Any = None  # noqa: N815
    failureMessage: Any = None  # noqa: N815
    endTime: Any = None  # noqa: N815
    reviewedAt: Any = None  # noqa: N815
    usage: Any = None


_head_decoder = msgspec.json.Decoder(_RunHead)

#: Characters of an id or a status. Three of them in one row of an index are still less than Postgres takes there.
_LONGEST = 255

# An escaped backslash before it makes \\u0000 harmless, so pairs of backslashes are skipped over.
_UNSTORABLE = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\u(?:0000|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _storable(match: re.Match[bytes]) -> bytes:
    text = match.group(0)
    pair = len(text) - len(match.group(1)) == 12
    return text if pair else match.group(1) + rb"\ufffd"


def storable(raw: bytes) -> bytes:
    """JSON text that Postgres takes as jsonb: a NUL and a lone surrogate become U+FFFD. The log keeps the original."""
    # One search for nearly all: few texts have an escape of that form at all.
    if b"\\u" not in raw or (b"\\u0000" not in raw and b"\\ud" not in raw and b"\\uD" not in raw):
        return raw
    return _UNSTORABLE.sub(_storable, raw)


def _plain(value: Any) -> str | None:
    """Text for a text column: as it is, or as JSON where Extend sent something else; without NUL."""
    if value is None:
        return None
    text = value if isinstance(value, str) else _encode(value).decode()
    return text.replace("\x00", "\ufffd")


def _credits(usage: Any) -> float | None:
    """A run's credits; None where there are none. Raises OverflowError for an integer beyond every float."""
    found = usage.get("credits") if isinstance(usage, dict) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _clean(run: bytes, metadata: bytes) -> tuple[bytes, bytes, Binding | None]:
    """The run and its metadata without the reserved key, and what the key said."""
    if _RESERVED not in metadata:
        return run, metadata, None
    fields = _metadata_decoder.decode(metadata)
    raw = fields.pop(reserved.KEY, None)
    binding = None
    if raw is not None:
        try:
            key = _reserved_decoder.decode(raw)
            binding = Binding(key.input, key.chunk, key.attempt, key.installation)
        except msgspec.DecodeError:
            binding = None
    cleaned = _encode(fields)
    return run.replace(metadata, cleaned), cleaned, binding


def run_of(record: LogRecord) -> Run:
    """Return the run of a record of ``runs``. Raises NotUnderstoodError."""
    try:
        event = _run_decoder.decode(upcast(record.headers, record.value or b""))
        whole = bytes(event.run)
        head = _head_decoder.decode(whole)
        run, metadata, binding = _clean(whole, bytes(head.metadata))
        credits = _credits(head.usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise NotUnderstoodError(f"not an event of runs: {error}") from None
    except TooNewError as error:
        raise NotUnderstoodError(str(error)) from None
    for indexed in (head.id, head.status, head.batchId or ""):
        if "\x00" in indexed:
            raise NotUnderstoodError("a NUL character in the run's id, status or batchId")
        if len(indexed) > _LONGEST:
            raise NotUnderstoodError(f"more than {_LONGEST} characters in the run's id, status or batchId")
    polled, told_at = event.source == "poll", _time_of(record)
    own = own_time(_text_or_none(head.endTime), _text_or_none(head.reviewedAt))
    return Run(
        run_id=head.id,
        batch_id=head.batchId,
        binding=binding,
        status=head.status,
        order=trimmed(event.order)
        if isinstance(event, events.RunTrimmed)
        else order_of(
            status=head.status,
            own=own,
            truncated=event.truncated,
            polled=polled,
            asked_at=told_at,
            digest=hashlib.blake2b(whole, digest_size=8).hexdigest(),
        ),
        observed_at=told_at,
        settled_at=own if head.status in FINAL else None,
        source=event.source,
        failure_reason=_plain(head.failureReason),
        failure_message=_plain(head.failureMessage),
        credits=credits,
        metadata=storable(metadata),
        run=storable(run),
    )


def _time_of(record: LogRecord) -> datetime:
    text = header(record.headers, "ce_time")
    moment = instant(text)
    if moment is None:
        raise NotUnderstoodError(f"the header ce_time is missing or not a time: {text[:40]!r}")
    return moment


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def fact_of(topic: str, record: LogRecord) -> Fact:
    """The event of a record of ``batches``, ``deliveries`` or ``quarantine``. Raises NotUnderstoodError."""
    decoder: Any = {"batches": _batch_decoder, "deliveries": _delivery_decoder, "quarantine": _quarantine_decoder}[
        topic
    ]
    try:
        return Fact(
            decoder.decode(upcast(record.headers, record.value or b"")),
            _time_of(record),
            header(record.headers, "ce_id"),
            record.partition,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotUnderstoodError(f"not an event of {topic}: {error}") from None
    except TooNewError as error:
        raise NotUnderstoodError(str(error)) from None
