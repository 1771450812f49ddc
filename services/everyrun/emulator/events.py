"""What a webhook says: its event, its payload or the link to it, its signature."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any, NamedTuple

import msgspec

from everyrun.emulator import render
from everyrun.emulator.runs import EVENTS, STEP_EVENT, Run

#: docs.extend.ai, webhooks/configuration: a signed link lasts an hour.
LINK_LASTS = 3600
#: SDK 1.20.0, types/file.py: the presigned URL of a file lasts 15 minutes.
FILE_LINK_LASTS = 900
#: The ``step`` of an event that is about the run itself.
WHOLE = -1
_encode = msgspec.json.encode


class Event(NamedTuple):
    """Something that became of a run in one of its generations, or of one of its steps (a place in ``STEPS``)."""

    id: str
    run: Run
    generation: int
    step: int

    @classmethod
    def of(cls, run: Run, step: int = WHOLE) -> Event:
        """The event of the run's present status; the same one has the same id for ever."""
        subject = f"{run.id}/{run.status}/{run.generation}/{step}"
        return cls("event_" + hashlib.blake2b(subject.encode(), digest_size=12).hexdigest(), run, run.generation, step)

    @property
    def then(self) -> Run:
        """The run as it was at the event, whatever became of it since."""
        return self.run.at(self.generation)

    @property
    def type(self) -> str:
        """eventType."""
        return EVENTS[self.then.status] if self.step == WHOLE else STEP_EVENT


class Links:
    """Signed links to payloads, at the emulator's own origin: they name what they show, so none need be kept."""

    def __init__(self, origin: str, key: bytes) -> None:
        self._origin = origin
        self._key = key

    def make(self, event: Event, now: float) -> str:
        """A link that is good for an hour. ``now`` is Unix seconds."""
        subject = f"{event.run.number}.{event.generation}.{event.step}.{event.id}.{int(now) + LINK_LASTS}"
        return f"{self._origin}/_signed/{subject}.{self._proof(subject)}"

    def read(self, token: str, now: float) -> tuple[int, int, int, str] | None:
        """(run number, generation, step, event id) behind a link's last part; None where it is wrong or too old."""
        subject, _, proof = token.rpartition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(subject).encode()):
            return None
        number, generation, step, event_id, expires = subject.split(".")
        return None if now > int(expires) else (int(number), int(generation), int(step), event_id)

    def make_for_file(self, file_id: str, now: float) -> str:
        """Return a link to a file's content that is good for 15 minutes. ``now`` is Unix seconds."""
        subject = f"{file_id}.{int(now) + FILE_LINK_LASTS}"
        return f"{self._origin}/_files/{subject}.{self._proof('file/' + subject)}"

    def read_for_file(self, token: str, now: float) -> str | None:
        """Return the file id behind a link's last part, or None if the link is wrong or expired."""
        subject, _, proof = token.rpartition(".")
        if not hmac.compare_digest(proof.encode(), self._proof("file/" + subject).encode()):
            return None
        file_id, _, expires = subject.rpartition(".")
        return None if now > int(expires) else file_id

    def _proof(self, subject: str) -> str:
        return hmac.new(self._key, subject.encode(), hashlib.sha256).hexdigest()


def payload(event: Event, born: float, ahead: float) -> bytes:
    """The JSON of the whole run, or of one of its steps, at the event, by a clock ``ahead`` by so many seconds."""
    then = event.then.by_clock(ahead)
    if event.step == WHOLE:
        return _encode(render.run(then, born))
    return _encode(render.step_runs(then, born)[event.step])


def body(event: Event, born: float, ahead: float, options: dict[str, Any], links: Links) -> bytes:
    """The request's body. ``options`` are the endpoint's advancedOptions.payload.

    A link of a step carries neither metadata nor the run's id (SDK 1.20.0, wrapper/webhooks.py).
    """
    shown = payload(event, born, ahead)
    # No threshold given: docs.extend.ai, webhooks/configuration, reads as if all were sent as links.
    if options.get("format") == "url" and len(shown) > (options.get("urlThresholdBytes") or -1):
        link: dict[str, Any] = {"object": "signed_data_url", "data": links.make(event, time.time())}
        if event.step == WHOLE:
            link |= {"id": event.run.id, "metadata": msgspec.Raw(event.run.metadata)}
        shown = _encode(link)
    return _encode({"eventId": event.id, "eventType": event.type, "payload": msgspec.Raw(shown)})


def sign(secret: str, timestamp: str, content: bytes) -> str:
    """The signature header (SDK 1.20.0, wrapper/webhooks.py)."""
    return hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + content, hashlib.sha256).hexdigest()


def altered(content: bytes) -> bytes:
    """The body with one letter changed: JSON still, but not what was signed."""
    return content.replace(b'"eventId"', b'"EventId"', 1)
