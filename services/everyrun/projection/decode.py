"""Decode the records of polls into runs and events, grouped by kind. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from everyrun.extend import reserved
from everyrun.log import events
from everyrun.log.cloudevents import LoggedEvent, header
from everyrun.log.reading import LogRecord, Poll, RecordKey
from everyrun.log.upcast import TooNewError, upcast
from everyrun.projection.rules import decisions
from everyrun.projection.rules.merge import FINAL, Binding, Run, instant, merge, order_of, own_time, trimmed
from everyrun.store.storable import storable_json, storable_text


class InvalidRecordError(Exception):
    """A record is not a valid event of its topic, or Postgres cannot store it.

    The record is put into the quarantine, with the text of this error as the reason.
    """


class Poison(NamedTuple):
    """A record that is not a valid event of its topic, or that Postgres cannot store, with the reason."""

    topic: str
    record: LogRecord
    reason: str


Unstorable = Mapping[RecordKey, str]
"""Records that could not be stored in an earlier try, each with the reason."""


class DecodedPolls(NamedTuple):
    """The decoded records of some polls."""

    runs: dict[str, Run]
    first_seen: dict[str, datetime]
    #: By run id: the distinct metadata that the run was seen with, in the order of the log.
    metadata: dict[str, list[bytes]]
    #: By run id: the distinct bindings that the run was seen with, in the order of the log.
    bindings: dict[str, list[Binding]]
    #: By run id: the partitions of the topic ``runs`` that contain the observations of the run.
    partitions: dict[str, set[int]]
    attempts: list[LoggedEvent]
    retries: list[LoggedEvent]
    submissions: list[LoggedEvent]
    deliveries: list[LoggedEvent]
    quarantine: list[LoggedEvent]
    decisions: list[LoggedEvent]
    poison: list[Poison]


def decode_polls(polls: Sequence[Poll], unstorable: Unstorable | None = None) -> DecodedPolls:
    """Decode polls. Merge the observations of each run, and put invalid and unstorable records into ``poison``.

    A record also goes to ``poison`` if it causes an unexpected exception, so that one bad record does not stop the
    records that follow.
    """
    decoded = DecodedPolls({}, {}, {}, {}, {}, [], [], [], [], [], [], [])
    for poll in polls:
        for record in poll.records:
            try:
                if unstorable and (poll.topic, poll.partition, record.offset) in unstorable:
                    raise InvalidRecordError(unstorable[poll.topic, poll.partition, record.offset])
                if poll.topic == "runs":
                    _add_run(decoded, run_of(record), record.partition)
                else:
                    _add_event(decoded, event_of(poll.topic, record))
            except InvalidRecordError as error:
                decoded.poison.append(Poison(poll.topic, record, str(error)))
            except Exception as error:
                decoded.poison.append(Poison(poll.topic, record, f"{type(error).__name__}: {error}"))
    return decoded


def _add_run(decoded: DecodedPolls, run: Run, partition: int) -> None:
    known = decoded.runs.get(run.run_id)
    decoded.runs[run.run_id] = run if known is None else merge(known, run)
    decoded.partitions.setdefault(run.run_id, set()).add(partition)
    bindings = decoded.bindings.setdefault(run.run_id, [])
    if run.binding is not None and run.binding not in bindings:
        bindings.append(run.binding)
    metadata = decoded.metadata.setdefault(run.run_id, [])
    if run.metadata not in metadata:
        metadata.append(run.metadata)
    seen = decoded.first_seen.get(run.run_id)
    decoded.first_seen[run.run_id] = run.observed_at if seen is None else min(seen, run.observed_at)


def _add_event(decoded: DecodedPolls, logged: LoggedEvent) -> None:
    event = logged.event
    if isinstance(event, events.SubmissionAccepted):
        decoded.submissions.append(logged)
    elif isinstance(event, events.DeliveryDeferred):
        decoded.deliveries.append(logged)
    elif isinstance(event, events.QuarantineEvent):
        decoded.quarantine.append(logged)
        if isinstance(event, decisions.OF_THE_QUARANTINE):
            decoded.decisions.append(logged)
    elif isinstance(event, decisions.OF_NO_ATTEMPT):
        decoded.decisions.append(logged)
    elif isinstance(event, events.InputsRetried):
        decoded.decisions.append(logged)
        decoded.retries.append(logged)
    else:
        if isinstance(event, decisions.OF_AN_ATTEMPT):
            decoded.decisions.append(logged)
        decoded.attempts.append(logged)
        if isinstance(event, events.BatchRegistered):
            decoded.submissions.append(logged)


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
    """The fields of a WorkflowRun that have columns in the tables (see Extend's SDK 1.20.0, types/workflow_run.py)."""

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

#: Maximum number of characters of an id or a status. A row of a Postgres index has at most about 2,700 bytes, and one
#: index has a run's status beside the ids of the submission and the input.
_LONGEST = 255


def _plain(value: Any) -> str | None:
    """Return a value for a text column: text unchanged, and any other value converted to JSON text."""
    if value is None:
        return None
    return storable_text(value if isinstance(value, str) else _encode(value).decode())


def _credits(usage: Any) -> float | None:
    """Return a run's credits, or None if it is not a number. Raises OverflowError if it is too large for a float."""
    found = usage.get("credits") if isinstance(usage, dict) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _clean(run: bytes, metadata: bytes) -> tuple[bytes, bytes, Binding | None]:
    """Return the run and its metadata, both without the reserved key, and the binding that the key holds (or None)."""
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
    """Return the run that a record of the topic ``runs`` describes. Raises InvalidRecordError."""
    try:
        event = _run_decoder.decode(upcast(record.headers, record.value or b""))
        whole = bytes(event.run)
        head = _head_decoder.decode(whole)
        run, metadata, binding = _clean(whole, bytes(head.metadata))
        credits = _credits(head.usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise InvalidRecordError(f"not a valid event of the topic runs: {error}") from None
    except TooNewError as error:
        raise InvalidRecordError(str(error)) from None
    for indexed in (head.id, head.status, head.batchId or ""):
        if "\x00" in indexed:
            raise InvalidRecordError("a NUL character in the run's id, status or batchId")
        if len(indexed) > _LONGEST:
            raise InvalidRecordError(f"more than {_LONGEST} characters in the run's id, status or batchId")
    observed_at = _time_of(record)
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
            polled=event.source == "poll",
            requested_at=observed_at,
            digest=hashlib.blake2b(whole, digest_size=8).hexdigest(),
        ),
        observed_at=observed_at,
        settled_at=own if head.status in FINAL else None,
        source=event.source,
        failure_reason=_plain(head.failureReason),
        failure_message=_plain(head.failureMessage),
        credits=credits,
        metadata=storable_json(metadata),
        run=storable_json(run),
    )


def _time_of(record: LogRecord) -> datetime:
    text = header(record.headers, "ce_time")
    moment = instant(text)
    if moment is None:
        raise InvalidRecordError(f"the header ce_time is missing or not a time: {text[:40]!r}")
    return moment


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def event_of(topic: str, record: LogRecord) -> LoggedEvent:
    """Return the event in a record of ``batches``, ``deliveries`` or ``quarantine``. Raises InvalidRecordError."""
    decoder: Any = {"batches": _batch_decoder, "deliveries": _delivery_decoder, "quarantine": _quarantine_decoder}[
        topic
    ]
    try:
        return LoggedEvent(
            decoder.decode(upcast(record.headers, record.value or b"")),
            _time_of(record),
            header(record.headers, "ce_id"),
            record.partition,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecordError(f"not a valid event of the topic {topic}: {error}") from None
    except TooNewError as error:
        raise InvalidRecordError(str(error)) from None
