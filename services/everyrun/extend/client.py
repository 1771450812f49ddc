"""Call Extend's API over httpx, within the request budget and with our own retries.

Sources: Extend's Python SDK 1.20.0 (paths, headers, fields) and docs.extend.ai (rate limits by category).

This module has over 300 lines, because the requests and the reading of Extend's errors belong together: a request
that fails raises the error that was read from the answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec

from everyrun.errors import EveryrunError
from everyrun.extend.budget import GET, LONGEST_PAUSE, RUN, WRITE, Budget, OwnTurns
from everyrun.redact import describe, redact
from everyrun.settings import Settings

API_VERSION = "2026-02-09"

#: HTTP statuses after which a request is retried, if the request may be repeated.
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})

#: Maximum number of characters that are kept of an error's message.
_QUOTED = 2000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def request_headers(settings: Settings) -> dict[str, str]:
    """Return the headers of every request to Extend: the key, the API version and the workspace if one is set."""
    headers = {
        "authorization": f"Bearer {settings.extend_api_key.get_secret_value()}",
        "x-extend-api-version": API_VERSION,
        "user-agent": "everyrun",
    }
    if settings.extend_workspace_id:
        headers["x-extend-workspace-id"] = settings.extend_workspace_id
    return headers


class ExtendError(EveryrunError):
    """Extend refused a request, did not answer in time, or sent a response that cannot be read.

    ``status`` is that of the response, or 0 if there was none.

    ``from_extend`` is True if the body was an error in Extend's format, and not, for example, a proxy's page.
    """

    def __init__(self, status: int, code: str, message: str, *, from_extend: bool = False) -> None:
        super().__init__(f"{status or 'no answer'} {code}: {message}")
        self.status = status
        self.code = code
        self.from_extend = from_extend


class Page(NamedTuple):
    """One page of a list that Extend returned."""

    data: list[Any]
    #: The token of the next page; None on the last one.
    token: str | None
    #: When Extend sent the page, by its own clock.
    at: datetime


def sent_at(headers: Mapping[str, str]) -> datetime:
    """Return when a response was sent: its Date header, in whole seconds, or our own time if there is none."""
    try:
        return parsedate_to_datetime(headers["date"]).astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        return datetime.now(UTC)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header (a number or a date) asks for, from 0 to LONGEST_PAUSE.

    Return None if there is no such header or it cannot be read. Every wait that Extend asks for is read by this
    function.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_PAUSE)


class Extend:
    """A client for one workspace of Extend. Use it as an async context manager.

    Without a ``budget``, the client uses the plan's whole rate, as if no other process called Extend.
    """

    def __init__(
        self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None, *, budget: Budget | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=settings.extend_base_url,
            headers=request_headers(settings),
            timeout=httpx.Timeout(settings.call_timeout, connect=min(10.0, settings.call_timeout)),
            transport=transport,
            limits=httpx.Limits(max_connections=32),
        )
        self._timeout = settings.call_timeout
        self._budget = budget or Budget(OwnTurns(settings.rate()), settings.rate())
        #: Requests sent, by category.
        self.sent = {GET: 0, WRITE: 0, RUN: 0}

    async def __aenter__(self) -> Extend:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()
        await self._budget.aclose()

    async def wait_for_turn(self, category: str) -> None:
        """Wait until a request of the category may be sent."""
        await self._budget.turn(category)

    async def pause(self, category: str, seconds: float) -> None:
        """Send no request of the category for this many seconds, because Extend asked for it."""
        await self._budget.pause(category, seconds)

    async def create_batch(self, body: bytes) -> httpx.Response:
        """POST a batch once, without retries: a retry could create a second batch. Raises httpx.HTTPError.

        The whole call, including the response body, takes at most EVERYRUN_CALL_TIMEOUT.
        """
        self.sent[RUN] += 1
        try:
            async with asyncio.timeout(self._timeout):
                return await self._http.post(
                    "/workflow_runs/batch", content=body, headers={"content-type": "application/json"}
                )
        except TimeoutError:
            raise httpx.ReadTimeout("the call took longer than EVERYRUN_CALL_TIMEOUT") from None

    async def get_run(self, run_id: str, within: float = 60.0) -> bytes:
        """Return the WorkflowRun as received.

        Raises ExtendError, with status 404 if the run does not exist. If there is no answer (status 0), or the answer
        is 408, 429, 5xx or unreadable, the request is first retried for ``within`` seconds.
        """
        return (await self._get(f"/workflow_runs/{quote(run_id, safe='')}", {}, within)).content

    async def cancel_run(self, run_id: str, within: float = 60.0) -> bytes:
        """Cancel a run, and return the WorkflowRun as received.

        Only a run that is PENDING or PROCESSING can be cancelled (SDK 1.20.0, workflow_runs/client.py cancel). The
        request is retried, which is safe: to cancel a run twice changes nothing. Raises ExtendError: with status 400 if
        the run cannot be cancelled in its status, 404 if it does not exist, and with 0, 429 or 5xx if retries for
        ``within`` seconds did not help.
        """
        path = f"/workflow_runs/{quote(run_id, safe='')}/cancel"
        return (await self._request("POST", WRITE, path, {}, within)).content

    async def list_runs(self, within: float = 60.0, **query: str | int) -> Page:
        """Return a page of run summaries. Raises ExtendError."""
        response = await self._get("/workflow_runs", query, within)
        return _page(response)

    async def get_workflow(self, workflow_id: str, within: float = 60.0) -> bytes:
        """Return the Workflow as received. Raises ExtendError: with 404 and ``from_extend`` if there is none."""
        return (await self._get(f"/workflows/{quote(workflow_id, safe='')}", {}, within)).content

    async def get_workflow_version(self, workflow_id: str, version: str, within: float = 60.0) -> bytes:
        """Return a WorkflowVersion as received.

        Raises ExtendError: with status 404 and ``from_extend`` if the workflow has no such version.
        """
        path = f"/workflows/{quote(workflow_id, safe='')}/versions/{quote(version, safe='')}"
        return (await self._get(path, {}, within)).content

    async def list_workflow_versions(self, workflow_id: str, within: float = 60.0) -> Page:
        """Return the first page of a workflow's version summaries. Raises ExtendError."""
        path = f"/workflows/{quote(workflow_id, safe='')}/versions"
        return _page(await self._get(path, {"maxPageSize": 100}, within))

    async def list_workflows(self, within: float = 60.0) -> Page:
        """Return the first page of workflow summaries. Raises ExtendError."""
        return _page(await self._get("/workflows", {"maxPageSize": 100}, within))

    async def _get(self, path: str, query: Mapping[str, str | int], within: float) -> httpx.Response:
        return await self._request("GET", GET, path, query, within)

    async def _request(
        self, method: str, category: str, path: str, query: Mapping[str, str | int], within: float
    ) -> httpx.Response:
        """Send a request that may be repeated, and retry it for ``within`` seconds. Raises ExtendError."""
        ends = time.monotonic() + within
        wait = 0.25
        while True:
            error = ExtendError(0, "UNREACHABLE", "")
            await self.wait_for_turn(category)
            self.sent[category] += 1
            try:
                async with asyncio.timeout(min(self._timeout, within)):
                    response = await self._http.request(method, path, params=dict(query))
                if response.status_code == 200 and _is_object(response.content):
                    return response
                error = _error(response)
            except (httpx.HTTPError, TimeoutError) as failure:
                error = ExtendError(0, "UNREACHABLE", describe(failure))
            if error.status not in (0, 200) and error.status not in _TRY_AGAIN:
                raise error
            if error.status == 429:
                pause = retry_after(response.headers)
                await self.pause(category, wait if pause is None else pause)
            if time.monotonic() + wait > ends:
                raise error
            await asyncio.sleep(wait)
            wait = min(wait * 2, 5.0)


def _page(response: httpx.Response) -> Page:
    page: dict[str, Any] = msgspec.json.decode(response.content)
    if not isinstance(page.get("data"), list):
        raise ExtendError(200, "UNREADABLE", "the list has no data")
    token = page.get("nextPageToken")
    return Page(page["data"], token if isinstance(token, str) and token else None, sent_at(response.headers))


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(content), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _error(response: httpx.Response) -> ExtendError:
    code, message = read_error(response.content)
    return ExtendError(response.status_code, code, message, from_extend=read_problem(response.content) is not None)


class Problem(NamedTuple):
    """An error from Extend, safe to store and to show."""

    code: str
    message: str
    retryable: bool


def clean(text: str) -> str:
    """Return Extend's text without secrets, NULs and lone surrogates, so that it can be stored, published and shown.

    Extend's text may quote the link to a file, which can contain a secret. Postgres cannot store NUL, and UTF-8 cannot
    encode a lone surrogate.
    """
    return _UNSTORABLE.sub("\ufffd", redact(text))


def read_json(content: bytes) -> Any:
    """Return the JSON value of a body, even if its texts are not valid UTF-8. Raises ValueError if it is not JSON."""
    try:
        return json.loads(content.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def read_problem(content: bytes) -> Problem | None:
    """Return the error in a body (SDK 1.20.0, types/api_error.py), or None if the body is not in Extend's format.

    Every version of this format requires code, message and retryable. Any other body (a proxy's page, an empty body,
    other JSON) does not tell what Extend did with the request.
    """
    body = _error_body(content)
    code, message, retryable = (body.get(name) for name in ("code", "message", "retryable"))
    if not (isinstance(code, str) and code and isinstance(message, str) and isinstance(retryable, bool)):
        return None
    return Problem(clean(code[:200]), clean(message[:_QUOTED]), retryable)


def read_error(content: bytes) -> tuple[str, str]:
    """Return an error body's code and message, or placeholders, for display only. For decisions, use read_problem."""
    body = _error_body(content)
    if not body:
        return "UNREADABLE", clean(content[:_QUOTED].decode("utf-8", "replace"))[:200]
    return clean(str(body.get("code") or "UNKNOWN")[:200]), clean(str(body.get("message") or "")[:_QUOTED])


def _error_body(content: bytes) -> dict[str, Any]:
    """Return the error object in a body, or an empty object.

    The error may also be under the key ``error``, because Extend's CLI also accepts this form.
    """
    try:
        body = read_json(content)
    except ValueError:
        return {}
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    return body if isinstance(body, dict) else {}
