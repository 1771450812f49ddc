"""Ask Extend if the API key works, and for the workflows, webhook endpoints and subscriptions. Change nothing there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from everyrun.doctor.facts import Answer, ExtendFacts
from everyrun.extend.client import read_error, request_headers
from everyrun.redact import describe
from everyrun.settings import Settings

#: Timeout of a request, in seconds.
_WITHIN = 15.0
#: Maximum number of pages of 100 endpoints or subscriptions to read.
_PAGES = 50


async def request(http: httpx.AsyncClient, method: str, url: str, **more: Any) -> Answer:
    """Send a request, and return the response or the reason why there was none. Never raises."""
    began = time.time()
    try:
        response = await http.request(method, url, **more)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return Answer(0, message=describe(error))
    clock = clock_of(response.headers, (began + time.time()) / 2)
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success:
        return Answer(response.status_code, body=body, clock=clock)
    return Answer(response.status_code, *read_error(response.content), body=body, clock=clock)


def clock_of(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds a server's clock is ahead of ``now``, or None if the response has no Date header.

    The header gives whole seconds, rounded down, so half a second is added.
    """
    try:
        return parsedate_to_datetime(headers["date"]).timestamp() + 0.5 - now
    except (KeyError, ValueError, TypeError):
        return None


async def ask_extend(settings: Settings, workflows: Sequence[str]) -> ExtendFacts:
    """Return Extend's responses about the key, these workflows, the webhook endpoints and the subscriptions."""
    headers = request_headers(settings)
    try:
        http = httpx.AsyncClient(base_url=settings.extend_base_url, headers=headers, timeout=_WITHIN)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        return ExtendFacts(Answer(0, message=describe(error)))
    async with http:
        key = await request(http, "GET", "/workflow_runs", params={"maxPageSize": 1})
        if key.status != 200:
            return ExtendFacts(key)
        found = await asyncio.gather(
            *(request(http, "GET", f"/workflows/{quote(workflow, safe='')}") for workflow in workflows)
        )
        endpoints = await _all(http, "/webhook_endpoints")
        subscriptions = await _all(http, "/webhook_subscriptions")
    return ExtendFacts(key, dict(zip(workflows, found, strict=True)), endpoints, subscriptions)


async def _all(http: httpx.AsyncClient, path: str) -> Answer:
    """Return the items of all pages of a list as one Answer. If a page fails, return the Answer of that page."""
    items: list[Any] = []
    query: dict[str, Any] = {"maxPageSize": 100}
    for _ in range(_PAGES):
        page = await request(http, "GET", path, params=query)
        if page.status != 200:
            return page
        if not isinstance(page.body, dict) or not isinstance(page.body.get("data"), list):
            return Answer(0, message="the list has no data", clock=page.clock)
        items += [item for item in page.body["data"] if isinstance(item, dict)]
        token = page.body.get("nextPageToken")
        if not token:
            break
        query["nextPageToken"] = token
    return Answer(200, body=items, clock=page.clock)
