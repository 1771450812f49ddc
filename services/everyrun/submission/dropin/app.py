"""Serve Extend's paths at Everyrun's address, for programs that were written for Extend's SDK.

Batches go into the queue. Runs that the result tables have are answered from the tables. Every other request is
forwarded to Extend. All errors are in Extend's form. docs/how-to/drop-in.md says what differs from Extend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import asyncpg

from everyrun.errors import EveryrunError, Invalid, Unavailable
from everyrun.extend.forward import (
    KeyRefusedError,
    NotForwardableError,
    OutcomeUnknownError,
    TooManyRequestsError,
    UnreachableError,
)
from everyrun.health import Health
from everyrun.http import BODY_BYTES
from everyrun.serve import Receive, Scope, Send, respond
from everyrun.settings import Settings
from everyrun.store import tokens
from everyrun.store.pool import POSTGRES_AWAY, is_slow
from everyrun.submission.dropin.batch_body import MORE_INPUTS, max_inputs, read_batch
from everyrun.submission.dropin.batches import Batches
from everyrun.submission.dropin.extend_form import (
    Answer,
    Problem,
    ReceivedProblem,
    check_version,
    json_answer,
    problem_answer,
)
from everyrun.submission.dropin.forwarding import Forwarding
from everyrun.submission.dropin.listing import AtExtend, ListQuery, list_query, page, parameters, run_shown
from everyrun.submission.dropin.runs import KnownBatch, Runs
from everyrun.telemetry import log

_log = log(__name__)
#: How many bodies of batches are read at the same time. Each may have up to BODY_BYTES.
_BODIES = 8
#: Maximum length of an Idempotency-Key that a caller sends.
_KEY_MAX = 255


class DropIn:
    """The ASGI application. Every request needs a token, and the scope that its effect needs (``scope_of``)."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, batches: Batches, runs: Runs, forwarding: Forwarding
    ) -> None:
        self._known = tokens.Tokens(pool, settings.api_token.get_secret_value())
        self._batches = batches
        self._runs = runs
        self._forwarding = forwarding
        self._bodies = asyncio.Semaphore(_BODIES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(Call(scope, receive, send))
        except Problem as problem:
            answer = problem_answer(problem)
        except ReceivedProblem as received:
            answer = received.answer
        except _ClientGoneError:
            return
        except (EveryrunError, *POSTGRES_AWAY) as error:
            answer = problem_answer(problem_of(error))
        except Exception:
            _log.exception("answering 500")
            answer = problem_answer(Problem(500, "something went wrong"))
        if answer is not None:
            await _send(send, answer)

    async def _answer(self, call: Call) -> Answer | None:
        """Return the answer, or None if it was sent already."""
        caller = await self._caller(call.headers)
        needed = scope_of(call.method, call.path)
        if needed not in caller.scopes:
            raise Problem(403, f"this token lacks the scope {needed}", "FORBIDDEN")
        match call.method, call.path.split("/")[1:]:
            case "POST", ["workflow_runs", "batch"]:
                return await self._create_batch(call, caller.name)
            case "GET", ["workflow_runs"]:
                return await self._list(call)
            case "GET", ["workflow_runs", run_id]:
                return await self._retrieve(call, run_id)
            case "POST", ["workflow_runs", run_id] | ["workflow_runs", run_id, "cancel"]:
                return await self._forwarding.change(call, run_id)
            case "DELETE", ["workflow_runs", run_id]:
                return await self._forwarding.delete(call, run_id, caller.name)
        await self._forwarding.stream(call)
        return None

    async def _caller(self, headers: Mapping[str, str]) -> tokens.Caller:
        kind, _, token = headers.get("authorization", "").partition(" ")
        found = await self._known.caller(token) if kind.lower() == "bearer" and token else None
        if found is None:
            raise Problem(401, "Authorization: Bearer TOKEN is missing or wrong; TOKEN is a token of Everyrun")
        return found

    async def _create_batch(self, call: Call, caller: str) -> Answer:
        check_version(call.headers)
        most = max_inputs(call.headers.get(MORE_INPUTS))
        key = call.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= _KEY_MAX:
            raise Problem(400, f"idempotency-key: must have 1 to {_KEY_MAX} characters")
        async with self._bodies:
            body = await call.json_body()
            batch = await asyncio.to_thread(read_batch, body, most)
            batch_id = await self._batches.create(batch, body, caller, key)
        return json_answer({"batchId": batch_id})

    async def _retrieve(self, call: Call, run_id: str) -> Answer:
        check_version(call.headers)
        known = None if self._forwarding.changed_recently(run_id) else await self._runs.find(run_id)
        if known is None:
            return await self._forwarding.run(call)
        answer = json_answer(None)
        return answer._replace(body=run_shown(known.run, known.batch_id))

    async def _list(self, call: Call) -> Answer:
        check_version(call.headers)
        given = parameters(call.query)
        batch = await self._runs.find_batch(given["batchId"]) if given.get("batchId") else None
        if batch is None:
            return await self._forwarding.page(call)
        query = list_query(given)
        if batch.told and not isinstance(query.at, AtExtend):
            return json_answer(page(*await self._runs.page(batch, query)))
        return json_answer(page(*await self._at_extend(call, batch, query)))

    async def _at_extend(self, call: Call, batch: KnownBatch, query: ListQuery) -> tuple[list[Any], str | None]:
        """Return a page of the runs of a batch as Extend lists them: one batch at Extend after the other."""
        at = query.at if isinstance(query.at, AtExtend) else AtExtend(0)
        while at.batch < len(batch.parts):
            pairs = query.for_extend(batch.parts[at.batch].batch_id, at.token)
            found, token = await self._forwarding.page_of(call, pairs, query.batch_id)
            at = AtExtend(at.batch, token) if token is not None else AtExtend(at.batch + 1)
            if found:
                return found, query.token(at) if at.batch < len(batch.parts) else None
        return [], None


class _ClientGoneError(Exception):
    """The client has closed the connection, so nobody needs an answer."""


class Call:
    """One HTTP request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1")
        self.path = path.rstrip("/") or "/"
        self.query: str = scope["query_string"].decode("latin-1")
        #: The headers by name in lower case. Of a repeated header, the last one.
        self.headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        self._receive = receive
        self.send = send

    async def parts(self, most: int) -> AsyncIterator[bytes]:
        """Yield the body in parts. Raises Problem (413) if it has more than ``most`` bytes."""
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise Problem(413, f"the body is larger than {most} bytes")
            more = message.get("more_body", False)
            yield part

    async def body(self) -> bytes:
        """Return the whole body. Raises Problem if it is larger than BODY_BYTES."""
        return b"".join([part async for part in self.parts(BODY_BYTES)])

    async def json_body(self) -> bytes:
        """Return the whole body of a request whose content is JSON. Raises Problem if its content type is another."""
        kind = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Problem(415, f"content-type: must be application/json, not {kind[:100]!r}")
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise Problem(415, f"content-encoding: must be absent, not {coding[:100]!r}")
        return await self.body()


def scope_of(method: str, path: str) -> tokens.Scope:
    """Return the scope that a request needs. Pure.

    Reading needs ``read``. Sending documents (batches, single runs, files) needs ``submit``. All other changes need
    ``operate``: to change, cancel or delete a run, and to change anything else at Extend.
    """
    if method in ("GET", "HEAD"):
        return "read"
    if method == "POST" and path in ("/workflow_runs/batch", "/workflow_runs", "/files/upload"):
        return "submit"
    return "operate"


def problem_of(error: Exception) -> Problem:
    """Return the answer in Extend's form to an error of Everyrun's. Pure, but for the log."""
    match error:
        case TooManyRequestsError():
            return Problem(429, str(error), headers={"retry-after": "1"})
        case NotForwardableError():
            return Problem(404, str(error))
        case OutcomeUnknownError():
            # A status that Extend's SDK does not retry (SDK 1.20.0, core/http_client.py).
            return Problem(424, str(error), "OUTCOME_UNKNOWN")
        case UnreachableError() | KeyRefusedError():
            return Problem(502, str(error))
        case Unavailable():
            return Problem(503, str(error), "UNAVAILABLE", {"retry-after": str(error.retry_after)})
        case Invalid():
            return Problem(400, str(error))
    _log.warning("the database does not answer", error=f"{type(error).__name__}: {error}")
    if is_slow(error):
        return Problem(504, "the database took too long for this request; retry later", "TOO_SLOW")
    return Problem(503, "the database does not answer; retry later", "UNAVAILABLE", {"retry-after": "1"})


class StartingDropIn:
    """Answers 503 in Extend's form until ``app`` is set, and then passes requests to it."""

    def __init__(self, health: Health) -> None:
        self.app: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            parts = ", ".join(sorted(self._health.missing))
            message = "Everyrun is starting" + (f" and waits for: {parts}" if parts else "") + "; retry later"
            await _send(send, problem_answer(Problem(503, message, "UNAVAILABLE", {"retry-after": "1"})))


async def _send(send: Send, answer: Answer) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    kind = answer.headers.get("content-type", "application/json").encode("latin-1")
    more = [(name, value) for name, value in headers if name not in (b"content-type", b"content-length")]
    await respond(send, answer.status, answer.body, kind, more)
