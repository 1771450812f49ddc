"""Where replayed events go: a topic, an HTTP address, a file of NDJSON. Each says which event of the log it repeats."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import time
from collections.abc import Sequence
from typing import Any, Protocol

import httpx
import msgspec

from everyrun.errors import Conflict
from everyrun.log.cloudevents import Record
from everyrun.log.producer import Producer

#: The CloudEvents extension that a replayed event has and a live one has not: where it lies, topic/partition/offset.
MARK = "everyrunreplay"
_ATTRIBUTES = ("id", "source", "specversion", "type", "subject", "time", "dataschema")
_encode = msgspec.json.Encoder().encode


class TargetError(Conflict):
    """An event was not taken; the text says by whom and why. What came before it was."""


class Target(Protocol):
    """Takes events that are replayed, in order."""

    #: How many events are handed over together; after them the place is kept.
    at_once: int

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Return when they are taken. Raises TargetError."""

    def size(self) -> int:
        """How much is written, for a target that can be cut back to it; else 0."""

    def finish(self) -> None:
        """Everything was delivered."""


def position_of(topic: str, record: Any) -> str:
    """Where a record lies in the log, as the mark says it; ``topic`` is the short name."""
    return f"{topic}/{record.partition}/{record.offset}"


def marked(topic: str, record: Any) -> list[tuple[str, bytes]]:
    """The record's headers with the mark; one replayed before says where it lies now."""
    kept = [(name, value) for name, value in record.headers if name != f"ce_{MARK}"]
    return [*kept, (f"ce_{MARK}", position_of(topic, record).encode())]


def structured(topic: str, record: Any) -> bytes:
    """The event as CloudEvents JSON, with the mark, the key and the time of append (``everyruntime``)."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    event: dict[str, Any] = {name: headers[f"ce_{name}"] for name in _ATTRIBUTES if headers.get(f"ce_{name}")}
    event["datacontenttype"] = headers.get("content-type", "application/json")
    event[MARK] = position_of(topic, record)
    event["partitionkey"] = (record.key or b"").decode("utf-8", "replace")
    try:
        msgspec.json.decode(record.value or b"")
        event["data"] = msgspec.Raw(record.value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        event["data_base64"] = base64.b64encode(record.value or b"").decode()
    return _encode(event)


class ToTopic:
    """A topic, by its full name. An event keeps key, headers and value, so it keeps its id."""

    at_once = 1000

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Return when Kafka has acknowledged all."""
        await self._producer.append(
            [Record(self._topic, record.key or b"", record.value or b"", marked(topic, record)) for record in records]
        )

    def size(self) -> int:
        """Nothing to cut back."""
        return 0

    def finish(self) -> None:
        """Nothing is left to do."""


class ToFile:
    """A file of CloudEvents JSON, a line an event; ``-`` is standard output.

    The lines are written beside the file, to FILE.part, where an interrupted replay resumes; the file appears when it
    is whole. What is no regular file (``-``, a pipe) is written directly.
    """

    at_once = 1000

    def __init__(self, path: str, size: int = 0) -> None:
        """Resume after ``size`` bytes, which an earlier run is known to have written; what follows them is cut off.

        Raises TargetError if fewer are there, or if the file cannot be written.
        """
        self._path = path
        self._cuts = path != "-" and (os.path.isfile(path) or not os.path.exists(path))
        self._part = f"{path}.part" if self._cuts else path
        try:
            if self._cuts and not os.path.exists(self._part) and size and _size(path) == size:
                # Ended between the rename and the end of the replay's place.
                os.rename(path, self._part)
            if self._cuts and size > _size(self._part):
                raise TargetError(
                    f"{self._part} is not what an earlier run wrote {size:,} bytes to; begin again with --anew"
                )
            how = os.O_WRONLY | (os.O_APPEND | os.O_CREAT if self._cuts else 0)
            descriptor = os.dup(1) if path == "-" else os.open(self._part, how, 0o666)
            self._file = os.fdopen(descriptor, "ab" if self._cuts else "wb")
            if self._cuts:
                self._file.truncate(size)
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from None

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Return when they are on the disk."""
        self._file.write(b"".join(structured(topic, record) + b"\n" for record in records))
        self._file.flush()
        if self._cuts:
            os.fsync(self._file.fileno())

    def size(self) -> int:
        """The bytes that are on the disk."""
        return self._file.seek(0, os.SEEK_END) if self._cuts else 0

    def finish(self) -> None:
        """Give the file its name: it is whole."""
        if self._cuts:
            os.replace(self._part, self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def sign(secret: str, identifier: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of Standard Webhooks; ``secret`` is base64, with or without ``whsec_``.

    Raises ValueError where it is not.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    content = f"{identifier}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


class ToUrl:
    """An HTTP address: a POST an event, signed as Standard Webhooks; what is not taken is tried again for a while."""

    at_once = 1

    def __init__(self, http: httpx.AsyncClient, url: str, secret: str, tries: int = 8) -> None:
        self._http = http
        self._url = url
        self._secret = secret
        self._tries = tries

    async def deliver(self, topic: str, records: Sequence[Any]) -> None:
        """Return when each was answered with 2xx. Raises TargetError where one is refused, or too often not taken."""
        for record in records:
            await self._post(topic, record)

    async def _post(self, topic: str, record: Any) -> None:
        body = structured(topic, record)
        # The same for every try and every run, so that the receiver can drop repeats; it may not contain a full stop.
        identifier = f"replay_{topic}_{record.partition}_{record.offset}"
        wait, said = 0.5, ""
        for tried in range(self._tries):
            if tried:
                await asyncio.sleep(wait)
                wait = min(wait * 2, 30.0)
            now = int(time.time())
            headers = {
                "content-type": "application/cloudevents+json",
                "webhook-id": identifier,
                "webhook-timestamp": str(now),
                "webhook-signature": sign(self._secret, identifier, now, body),
            }
            try:
                answer = await self._http.post(self._url, content=body, headers=headers)
            except httpx.TransportError as error:
                said = type(error).__name__
                continue
            if answer.is_success:
                return
            said = f"status {answer.status_code}"
            if answer.status_code not in (408, 409, 425, 429) and answer.status_code < 500:
                break
            wait = max(wait, min(float(answer.headers.get("retry-after", "0") or 0), 60.0)) if _number(answer) else wait
        raise TargetError(f"{self._url} did not take {position_of(topic, record)}: {said}")

    def size(self) -> int:
        """Nothing to cut back."""
        return 0

    def finish(self) -> None:
        """Nothing is left to do."""


def _number(answer: httpx.Response) -> bool:
    return str(answer.headers.get("retry-after", "")).isdecimal()
