"""A deferred delivery is fetched from its link within limits, or else as a run from Extend."""

from __future__ import annotations

import json

import httpx
import msgspec
import pytest

from everyrun.addresses import origin
from everyrun.extend.client import Extend
from everyrun.log.cloudevents import header
from everyrun.log.events import DeliveryDeferred, RunObserved
from everyrun.log.observation import MAX_RUN_BYTES, InvalidRunError, fit, observed, read_head
from everyrun.reconciler.deliveries import Deliveries
from everyrun.reconciler.links import LinkError, Links
from everyrun.settings import Settings

ORIGIN = "https://files.example"
RUN = {"object": "workflow_run", "id": "r", "status": "PROCESSED", "batchId": "b"}
HEADERS = [("ce_id", b"event_1"), ("ce_time", b"2026-01-01T00:00:00.000Z")]


async def public(_host: str, _port: int) -> list[str]:
    return ["8.8.8.8"]


def links(answer, **more) -> Links:
    given = {"max_bytes": 1000, "timeout": 5.0, "resolver": public, **more}
    return Links([ORIGIN], transport=httpx.MockTransport(answer), **given)


def gives(body: bytes, status: int = 200):
    return lambda _request: httpx.Response(status, content=body)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://files.example/a?b", True),
        ("https://files.example:443/a", True),
        ("https://FILES.example/a", True),
        ("http://files.example/a", False),
        ("https://files.example:8443/a", False),
        ("https://files.example.evil/a", False),
        ("https://evil/files.example", False),
        ("https://files.example@evil/a", False),
        ("https://user@files.example/a", False),
        ("ftp://files.example/a", False),
        ("//files.example/a", False),
        ("file:///etc/passwd", False),
        ("https://[bad/a", False),
        ("", False),
    ],
)
async def test_only_the_allowed_origin_is_fetched(url, same) -> None:
    assert (origin(url) == origin(ORIGIN)) is same
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(200, content=b"ok")

    if same:
        assert await links(answer).fetch(url) == b"ok"
    else:
        with pytest.raises(LinkError, match="SIGNED_URL_ORIGINS"):
            await links(answer).fetch(url)
        assert asked == []


async def test_redirect_is_not_followed() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"location": ORIGIN + "/other"})

    with pytest.raises(LinkError, match="302"):
        await links(answer).fetch(ORIGIN + "/a")
    assert asked == ["https://8.8.8.8/a"]


async def test_size_is_limited_while_reading() -> None:
    assert len(await links(gives(b"x" * 1000)).fetch(ORIGIN + "/a")) == 1000
    with pytest.raises(LinkError, match="1000 bytes"):
        await links(gives(b"x" * 1001)).fetch(ORIGIN + "/a")


@pytest.mark.parametrize(("status", "times"), [(403, 1), (404, 1), (500, 3), (503, 3), (429, 3)])
async def test_transient_failure_is_retried_and_final_one_is_not(status, times) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status)

    with pytest.raises(LinkError, match=str(status)):
        await links(answer).fetch(ORIGIN + "/a")
    assert len(asked) == times


async def outcome(link_answer, extend_answer, url: str = ORIGIN + "/a"):
    settings = Settings(extend_base_url="https://extend.example", requests_per_second=1000, call_timeout=5)
    delivery = DeliveryDeferred("workflow_run.completed", "r", url, None)
    async with Extend(settings, httpx.MockTransport(extend_answer)) as extend:
        worker = Deliveries(links(link_answer), extend, log=None)
        return await worker.outcome(b"r", msgspec.json.encode(delivery), HEADERS)


def refused(_request: httpx.Request) -> httpx.Response:
    raise AssertionError("not to be asked")


async def test_fetched_payload_becomes_the_record_of_its_webhook() -> None:
    body = b'{ "object":"workflow_run", "id":"r","status":"FAILED","batchId":"b" }'
    record = await outcome(gives(body), refused)
    assert (record.topic, record.key) == ("runs", b"b")
    assert header(record.headers, "ce_id") == "delivery-event_1"
    assert header(record.headers, "ce_time") == "2026-01-01T00:00:00.000Z"
    event = msgspec.json.decode(record.value, type=RunObserved)
    assert (event.source, event.event_type, bytes(event.run)) == ("webhook", "workflow_run.completed", body)


@pytest.mark.parametrize(
    "link_answer",
    [
        gives(b"", 403),
        gives(b"x" * 1001),
        gives(b"not json"),
        gives(b"[]"),
        gives(b"\xff"),
        gives(json.dumps({**RUN, "id": "another"}).encode()),
        gives(json.dumps({**RUN, "object": "file"}).encode()),
    ],
)
async def test_run_is_fetched_from_extend_if_the_link_fails(link_answer) -> None:
    record = await outcome(link_answer, gives(json.dumps(RUN).encode()))
    assert header(record.headers, "ce_id").startswith("poll/r/")
    assert msgspec.json.decode(record.value, type=RunObserved).source == "poll"


async def test_link_to_another_origin_is_not_requested_but_the_run_is() -> None:
    record = await outcome(refused, gives(json.dumps(RUN).encode()), url="https://evil/a")
    assert msgspec.json.decode(record.value, type=RunObserved).source == "poll"


async def test_run_is_left_to_polling_if_extend_fails_too() -> None:
    assert await outcome(gives(b"", 403), gives(b"{}", 404)) is None


async def test_unreadable_delivery_is_skipped() -> None:
    worker = Deliveries(links(refused), extend=None, log=None)
    for value in (b"", None, b"{}", b"\xff"):
        assert await worker.outcome(None, value, []) is None


def test_run_too_large_for_a_record_keeps_its_head() -> None:
    large = {**RUN, "stepRuns": ["x" * MAX_RUN_BYTES], "files": [1], "metadata": {"a": 1}}
    run = json.dumps(large).encode()
    kept, truncated = fit(run)
    assert truncated
    assert json.loads(kept) == {**large, "stepRuns": [], "files": []}
    record = observed(run, read_head(run), source="poll", id="i", time="t", service="s")
    assert msgspec.json.decode(record.value, type=RunObserved).truncated
    small = json.dumps(RUN).encode()
    assert fit(small) == (small, False)
    with pytest.raises(InvalidRunError, match="bytes"):
        fit(json.dumps({**RUN, "output": "x" * MAX_RUN_BYTES}).encode())
