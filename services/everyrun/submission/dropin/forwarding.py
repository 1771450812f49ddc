"""Forward requests to Extend, and show what comes back as the caller knows it: batchIds, and no reserved key."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlencode

import httpx
import msgspec

from everyrun.extend.client import read_json
from everyrun.extend.forward import Forwarder, UnreachableError, returned_headers
from everyrun.extend.reserved import PREFIX
from everyrun.log.cloudevents import timestamp
from everyrun.log.observation import InvalidRunError, observed, read_head
from everyrun.log.producer import Log
from everyrun.redact import describe
from everyrun.serve import Send
from everyrun.submission.dispatch.dispatcher import UNAVAILABLE
from everyrun.submission.dispatch.event_records import SOURCE
from everyrun.submission.dropin.extend_form import Answer, Problem, ReceivedProblem, json_answer
from everyrun.submission.dropin.listing import batch_of, page, read_page, run_shown, summary_shown
from everyrun.submission.dropin.runs import Runs
from everyrun.telemetry import log

_log = log(__name__)
#: Maximum size of an answer that is read into memory because something in it must be replaced, in bytes.
_ANSWER_BYTES = 64 << 20
#: Seconds after a change of a run in which the run is read from Extend, because the tables may not show the change yet.
_CHANGED_FOR = 60.0
_CHANGED_MOST = 10_000


class Call(Protocol):
    """A request, as ``app.Call`` has it."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    send: Send

    def parts(self, most: int) -> AsyncIterator[bytes]:
        """Yield the body in parts."""

    async def body(self) -> bytes:
        """Return the whole body."""


class Forwarding:
    """Forwards requests. The methods raise Problem and the errors of :class:`everyrun.extend.forward.Forwarder`."""

    def __init__(self, forwarder: Forwarder, runs: Runs, log: Log, upload_max_bytes: int) -> None:
        self._forwarder = forwarder
        self._runs = runs
        self._log = log
        self._upload_max_bytes = upload_max_bytes
        #: By run id: when a caller last changed the run, by the monotonic clock.
        self._changed: dict[str, float] = {}

    async def stream(self, call: Call) -> None:
        """Forward a request and its answer part by part, unchanged."""
        has_body = "content-length" in call.headers or "transfer-encoding" in call.headers
        content = call.parts(self._upload_max_bytes) if has_body else b""
        response = await self._forwarder.send(call.method, call.path, call.query, call.headers, content)
        try:
            headers = returned_headers(response)
            if "content-length" in response.headers:
                headers["content-length"] = response.headers["content-length"]
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            await call.send({"type": "http.response.start", "status": response.status_code, "headers": raw})
            async for part in response.aiter_raw():
                await call.send({"type": "http.response.body", "body": part, "more_body": True})
            await call.send({"type": "http.response.body", "body": b""})
        except httpx.HTTPError as error:
            # The answer has begun, so the only way to show that it is incomplete is to close the connection, which the
            # server does if an answer is not finished.
            _log.warning("Extend's answer ended early", path=call.path, error=describe(error))
        finally:
            await response.aclose()

    async def run(self, call: Call) -> Answer:
        """Forward a GET of a run."""
        response, content = await self._read(call, call.query, b"")
        return await self._shown(response, content)

    async def change(self, call: Call, run_id: str) -> Answer:
        """Forward an update or a cancellation of a run, and write what Extend answers to the log."""
        body = await call.body()
        _refuse_reserved(body)
        requested = datetime.now(UTC)
        response, content = await self._read(call, call.query, body)
        if response.status_code == 200:
            self._remember(run_id)
            await self._observe(content, requested)
        return await self._shown(response, content)

    async def delete(self, call: Call, run_id: str, caller: str) -> Answer:
        """Forward the deletion of a run. From then on, Everyrun does not show the run here."""
        response, content = await self._read(call, call.query, b"")
        if response.status_code == 200:
            self._remember(run_id)
            await self._runs.save_deleted(run_id, caller)
            _log.info("a caller deleted a run at Extend", run=run_id, by=caller)
        return _as_received(response, content)

    async def page(self, call: Call) -> Answer:
        """Forward a list of runs."""
        response, content = await self._read(call, call.query, b"")
        if response.status_code != 200:
            return _as_received(response, content)
        found = _decoded(read_page, content)
        known = await self._runs.known_as([name for run in found.data if (name := batch_of(run)) is not None])
        if not known:
            return _as_received(response, content)
        data = [summary_shown(run, known[name]) if (name := batch_of(run)) in known else run for run in found.data]
        return json_answer(page(data, found.nextPageToken))

    async def page_of(
        self, call: Call, pairs: Iterable[tuple[str, str]], batch_id: str
    ) -> tuple[list[Any], str | None]:
        """Return a page of summaries, each with this batchId, and Extend's token of the next page."""
        response, content = await self._read(call, urlencode(list(pairs)), b"")
        if response.status_code != 200:
            raise ReceivedProblem(_as_received(response, content))
        found = _decoded(read_page, content)
        return [summary_shown(run, batch_id) for run in found.data], found.nextPageToken

    def changed_recently(self, run_id: str) -> bool:
        """Return True if a caller of this process changed the run a moment ago."""
        return time.monotonic() - self._changed.get(run_id, float("-inf")) < _CHANGED_FOR

    def _remember(self, run_id: str) -> None:
        self._changed.pop(run_id, None)
        self._changed[run_id] = time.monotonic()
        while len(self._changed) > _CHANGED_MOST:
            del self._changed[next(iter(self._changed))]

    async def _read(self, call: Call, query: str, body: bytes) -> tuple[httpx.Response, bytes]:
        headers = {name: value for name, value in call.headers.items() if name != "content-length"}
        response = await self._forwarder.send(call.method, call.path, query, headers, body)
        try:
            parts, size = [], 0
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > _ANSWER_BYTES:
                    raise Problem(502, f"Extend's answer is larger than {_ANSWER_BYTES} bytes")
        except httpx.HTTPError as error:
            raise UnreachableError(f"Extend's answer ended early: {describe(error)}") from None
        finally:
            await response.aclose()
        return response, b"".join(parts)

    async def _shown(self, response: httpx.Response, content: bytes) -> Answer:
        """Return the answer for a caller: a run without the reserved key, with the batchId that the caller knows."""
        if response.status_code != 200:
            return _as_received(response, content)
        batch_id = _decoded(batch_of, content)
        known = await self._runs.known_as([batch_id]) if batch_id is not None else {}
        shown = _decoded(lambda run: run_shown(run, known.get(batch_id or "", batch_id)), content)
        return _as_received(response, shown)

    async def _observe(self, content: bytes, requested: datetime) -> None:
        """Write a run that a caller changed to the log, so that the tables learn of the change.

        If the log cannot be written, only log it: the change itself has been made. A poll finds it if it changed the
        status; new metadata are then not shown in the tables.
        """
        try:
            head = read_head(content)
            if b'"' + PREFIX.encode() not in bytes(head.metadata) and not await self._runs.has(head.id):
                return
            record = observed(
                content,
                head,
                source="poll",
                id=f"dropin-{uuid.uuid4().hex}",
                time=timestamp(requested),
                service=SOURCE,
            )
            async with asyncio.timeout(10.0):
                await self._log.append([record])
        except InvalidRunError as error:
            _log.warning("a changed run cannot be read", error=str(error))
        except UNAVAILABLE as error:
            _log.warning("a changed run was not written to the log", error=f"{type(error).__name__}: {error}")


def _as_received(response: httpx.Response, content: bytes) -> Answer:
    headers = returned_headers(response)
    headers.pop("content-encoding", None)
    return Answer(response.status_code, content, headers)


def _decoded(decode: Any, content: bytes) -> Any:
    try:
        return decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(502, "Extend's answer cannot be read") from None


def _refuse_reserved(body: bytes) -> None:
    """Raise Problem if an update would overwrite the metadata by which Everyrun recognizes its runs."""
    if not body:
        return
    try:
        given = read_json(body)
    except ValueError as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
    metadata = given.get("metadata") if isinstance(given, dict) else None
    for key in metadata if isinstance(metadata, dict) else ():
        if key.startswith(PREFIX):
            raise Problem(400, f"metadata.{key[:100]}: keys that begin with {PREFIX} are reserved for Everyrun")
