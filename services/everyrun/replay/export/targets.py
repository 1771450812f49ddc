"""Deliver replayed events to a topic, an HTTP address or an NDJSON file.

Each event carries a mark with its position in the log.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Sequence
from typing import Any, Protocol

import httpx
import msgspec

from everyrun import standard_webhooks
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer
from everyrun.log.reading import LogRecord
from everyrun.replay.errors import TargetError

#: The mark of a replayed event: a CloudEvents extension attribute that live events do not have. Its value is the
#: position of the event in the log, as topic/partition/offset.
MARK = "everyrunreplay"
_ATTRIBUTES = ("id", "source", "specversion", "type", "subject", "time", "dataschema")
_encode = msgspec.json.Encoder().encode


class Target(Protocol):
    """A receiver of replayed events."""

    #: Maximum number of events per delivery. The checkpoint is saved after each delivery.
    at_once: int

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Deliver events in order; return when the target has accepted all of them. Raises TargetError."""

    def size(self) -> int:
        """Return the size of the target in bytes. Return 0 if a resumed replay cannot truncate the target."""

    def finish(self) -> None:
        """Complete the target after the last event."""


def position_of(topic: str, record: LogRecord) -> str:
    """Return the value of the mark for a record: topic/partition/offset. ``topic`` is the short name."""
    return f"{topic}/{record.partition}/{record.offset}"


def marked(topic: str, record: LogRecord) -> list[tuple[str, bytes]]:
    """Return the record's headers with the mark, which replaces the mark of an earlier replay."""
    kept = [(name, value) for name, value in record.headers if name != f"ce_{MARK}"]
    return [*kept, (f"ce_{MARK}", position_of(topic, record).encode())]


def structured(topic: str, record: LogRecord) -> bytes:
    """Encode an event as CloudEvents JSON, with the mark, and with the record's key as ``partitionkey``."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    event: dict[str, Any] = {name: headers[f"ce_{name}"] for name in _ATTRIBUTES if headers.get(f"ce_{name}")}
    event["datacontenttype"] = headers.get("content-type", "application/json")
    event[MARK] = position_of(topic, record)
    event["partitionkey"] = (record.key or b"").decode("utf-8", "replace")
    value = record.value or b""
    try:
        msgspec.json.decode(value)
        event["data"] = msgspec.Raw(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        event["data_base64"] = base64.b64encode(value).decode()
    return _encode(event)


class ToTopic:
    """Writes events to a topic. Key, value and headers are unchanged, but the mark is added or replaced."""

    at_once = 1000

    def __init__(self, producer: Producer, topic: str) -> None:
        """Write to ``topic``, a full name."""
        self._producer = producer
        self._topic = topic

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Write the events; return when Kafka has acknowledged all of them."""
        await self._producer.append(
            [Record(self._topic, record.key or b"", record.value or b"", marked(topic, record)) for record in records]
        )

    def size(self) -> int:
        """Return 0: the target cannot be truncated."""
        return 0

    def finish(self) -> None:
        """Do nothing."""


class ToFile:
    """Writes CloudEvents JSON to a file, one line per event; ``-`` is standard output.

    The lines are written to FILE.part, so that an interrupted replay can resume. The complete file is renamed to FILE.
    The lines for a pipe or standard output are written to it directly, so such a replay cannot resume.
    """

    at_once = 1000

    def __init__(self, path: str, size: int = 0) -> None:
        """Open the file and truncate it to ``size`` bytes, the size in the checkpoint of an interrupted replay.

        Raises TargetError if the file is shorter or cannot be written.
        """
        self._path = path
        self._resumable = path != "-" and (os.path.isfile(path) or not os.path.exists(path))
        self._part = f"{path}.part" if self._resumable else path
        try:
            if self._resumable and not os.path.exists(self._part) and size and _size(path) == size:
                # The earlier process ended after it renamed the file and before it deleted the checkpoint: undo the
                # renaming.
                os.rename(path, self._part)
            if self._resumable and size > _size(self._part):
                raise TargetError(
                    f"{self._part} is shorter than the {size:,} bytes that an earlier run wrote; "
                    "start from the beginning with --anew"
                )
            flags = os.O_WRONLY | (os.O_APPEND | os.O_CREAT if self._resumable else 0)
            descriptor = os.dup(1) if path == "-" else os.open(self._part, flags, 0o666)
            self._file = os.fdopen(descriptor, "ab" if self._resumable else "wb")
            if self._resumable:
                self._file.truncate(size)
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from None

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Write the events; return when they are on the disk."""
        self._file.write(b"".join(structured(topic, record) + b"\n" for record in records))
        self._file.flush()
        if self._resumable:
            os.fsync(self._file.fileno())

    def size(self) -> int:
        """Return the number of bytes on the disk."""
        return self._file.seek(0, os.SEEK_END) if self._resumable else 0

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        if self._resumable:
            os.replace(self._part, self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


class ToUrl:
    """Posts each event to a URL, signed as the specification "Standard Webhooks" says.

    Connection errors and the statuses 408, 409, 425, 429 and 5xx are retried.
    """

    at_once = 1

    def __init__(self, http: httpx.AsyncClient, url: str, secret: str, tries: int = 8) -> None:
        self._http = http
        self._url = url
        self._secret = secret
        self._tries = tries

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Send the events; return when each of them was answered with 2xx.

        Raises TargetError if an event is refused, or still fails after all retries.
        """
        for record in records:
            await self._post(topic, record)

    async def _post(self, topic: str, record: LogRecord) -> None:
        body = structured(topic, record)
        # The id stays the same in every retry, even after a restart, so that the receiver can drop repeated events. It
        # must not contain a full stop, because full stops separate the parts of the signed content.
        identifier = f"replay_{topic}_{record.partition}_{record.offset}"
        wait, failure = 0.5, ""
        for retry in range(self._tries):
            if retry:
                await asyncio.sleep(wait)
                wait = min(wait * 2, 30.0)
            now = int(time.time())
            headers = {
                "content-type": "application/cloudevents+json",
                **standard_webhooks.headers(identifier, now, body, [self._secret]),
            }
            try:
                answer = await self._http.post(self._url, content=body, headers=headers)
            except httpx.TransportError as error:
                failure = type(error).__name__
                continue
            if answer.is_success:
                return
            failure = f"status {answer.status_code}"
            if answer.status_code not in (408, 409, 425, 429) and answer.status_code < 500:
                break
            wait = (
                max(wait, min(float(answer.headers.get("retry-after", "0") or 0), 60.0))
                if _has_retry_after(answer)
                else wait
            )
        raise TargetError(f"{self._url} did not accept the event {position_of(topic, record)}: {failure}")

    def size(self) -> int:
        """Return 0: the target cannot be truncated."""
        return 0

    def finish(self) -> None:
        """Do nothing."""


def _has_retry_after(answer: httpx.Response) -> bool:
    return str(answer.headers.get("retry-after", "")).isdecimal()
