"""Make the content of webhooks: events, payloads, signed links to payloads, and signatures."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any, NamedTuple

import msgspec

from everyrun.emulator import render
from everyrun.emulator.runs import EVENTS, STEP_EVENT, Run

#: Seconds for which a signed link to a payload is valid (docs.extend.ai, webhooks/configuration: an hour).
LINK_SECONDS = 3600
#: Seconds for which the presigned URL of a file is valid (SDK 1.20.0, types/file.py: 15 minutes).
FILE_LINK_SECONDS = 900
#: The value of ``Event.step`` for an event about the whole run, not about one of its steps.
WHOLE_RUN = -1
_encode = msgspec.json.encode


class Event(NamedTuple):
    """Describes what a webhook reports: a run reached a status, or one of its steps ended.

    ``step`` is the index of the step in ``STEPS``, or WHOLE_RUN. ``generation`` is the number of reruns and reviews
    before the event.
    """

    id: str
    run: Run
    generation: int
    step: int

    @classmethod
    def of(cls, run: Run, step: int = WHOLE_RUN) -> Event:
        """Return the event for the run's present status, or for one of its steps.

        The same run, status, generation and step always give the same id.
        """
        subject = f"{run.id}/{run.status}/{run.generation}/{step}"
        return cls("event_" + hashlib.blake2b(subject.encode(), digest_size=12).hexdigest(), run, run.generation, step)

    @property
    def then(self) -> Run:
        """The run as it was when the event happened, without later reruns and reviews."""
        return self.run.at(self.generation)

    @property
    def type(self) -> str:
        """The eventType, for example workflow_run.completed."""
        return EVENTS[self.then.status] if self.step == WHOLE_RUN else STEP_EVENT


class Links:
    """Makes and reads signed links to payloads and files. A link itself names its target, so links are not stored."""

    def __init__(self, origin: str, key: bytes) -> None:
        self._origin = origin
        self._key = key

    def make(self, event: Event, now: float) -> str:
        """Return a link to a payload. The link is valid for an hour. ``now`` is Unix seconds."""
        subject = f"{event.run.number}.{event.generation}.{event.step}.{event.id}.{int(now) + LINK_SECONDS}"
        return f"{self._origin}/_signed/{subject}.{self._signature(subject)}"

    def read(self, token: str, now: float) -> tuple[int, int, int, str] | None:
        """Return (run number, generation, step, event id) for the token of a link.

        Return None if the token was not made by this emulator, or has expired.
        """
        subject, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(subject).encode()):
            return None
        number, generation, step, event_id, expires = subject.split(".")
        return None if now > int(expires) else (int(number), int(generation), int(step), event_id)

    def make_for_file(self, file_id: str, now: float) -> str:
        """Return a link to a file's content. The link is valid for 15 minutes. ``now`` is Unix seconds."""
        subject = f"{file_id}.{int(now) + FILE_LINK_SECONDS}"
        return f"{self._origin}/_files/{subject}.{self._signature('file/' + subject)}"

    def read_for_file(self, token: str, now: float) -> str | None:
        """Return the file id for the token of a link, or None if the token is wrong or has expired."""
        subject, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature("file/" + subject).encode()):
            return None
        file_id, _, expires = subject.rpartition(".")
        return None if now > int(expires) else file_id

    def _signature(self, subject: str) -> str:
        return hmac.new(self._key, subject.encode(), hashlib.sha256).hexdigest()


def payload(event: Event, workflow_made_at: float, clock_offset: float) -> bytes:
    """Return, as JSON, the run or step at the time of the event. Its times are shifted by ``clock_offset`` seconds."""
    then = event.then.by_clock(clock_offset)
    if event.step == WHOLE_RUN:
        return _encode(render.run(then, workflow_made_at))
    return _encode(render.step_runs(then, workflow_made_at)[event.step])


def body(event: Event, workflow_made_at: float, clock_offset: float, options: dict[str, Any], links: Links) -> bytes:
    """Return the body of a webhook. ``options`` are the endpoint's advancedOptions.payload.

    If the options ask for links, the payload is a link instead of the object. A link to a run carries the run's id and
    metadata; a link to a step carries neither (SDK 1.20.0, wrapper/webhooks.py).
    """
    shown = payload(event, workflow_made_at, clock_offset)
    # Without a threshold, every payload is a link (as we read docs.extend.ai, webhooks/configuration).
    if options.get("format") == "url" and len(shown) > (options.get("urlThresholdBytes") or -1):
        link: dict[str, Any] = {"object": "signed_data_url", "data": links.make(event, time.time())}
        if event.step == WHOLE_RUN:
            link |= {"id": event.run.id, "metadata": msgspec.Raw(event.run.metadata)}
        shown = _encode(link)
    return _encode({"eventId": event.id, "eventType": event.type, "payload": msgspec.Raw(shown)})


def sign(secret: str, timestamp: str, content: bytes) -> str:
    """Return the value of the signature header (SDK 1.20.0, wrapper/webhooks.py)."""
    return hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + content, hashlib.sha256).hexdigest()


def corrupted(content: bytes) -> bytes:
    """Return the body with one letter changed, so that it is still JSON but no longer what was signed."""
    return content.replace(b'"eventId"', b'"EventId"', 1)
