"""The bridge accepts exactly the webhooks that Extend's SDK accepts, over HTTP."""

from __future__ import annotations

import json
from unittest import mock

import httpx
import pytest
from extend_ai.wrapper.webhooks import Webhooks

from everyrun.bridge.handler import Handler
from everyrun.extend.signature import sign
from everyrun.serve import http_server
from tests.conftest import free_port
from tests.memory_log import MemoryLog

NOW = 1767225600
SECRET = "wss_example_secret_0123456789"
RUN = {"object": "workflow_run", "id": "r", "status": "PROCESSED", "batchId": "b"}
BODY = json.dumps({"eventId": "e", "eventType": "workflow_run.completed", "payload": RUN, "é": "ü"}).encode()
STAMP, SIGNATURE = "x-extend-request-timestamp", "x-extend-request-signature"


@pytest.fixture(scope="module")
async def bridge():
    port = free_port()
    app = Handler(MemoryLog(), [SECRET.encode()], clock=lambda: NOW)
    async with http_server(f"127.0.0.1:{port}", app), httpx.AsyncClient() as http:
        yield http, f"http://127.0.0.1:{port}/webhooks/extend"


def good(timestamp: str = str(NOW), body: bytes = BODY, secret: str = SECRET) -> dict[str, str]:
    return {STAMP: timestamp, SIGNATURE: sign(timestamp.encode(), body, secret.encode()).decode()}


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in good().items() if key != name}


CASES = {
    "good": (good(), BODY),
    "header names in capitals": ({key.upper(): value for key, value in good().items()}, BODY),
    "not JSON": (good(body=b"{"), b"{"),
    "empty": (good(body=b""), b""),
    "tampered": (good(), BODY + b" "),
    "re-serialised": (good(), json.dumps(json.loads(BODY), indent=1).encode()),
    "wrong secret": (good(secret="wss_other"), BODY),
    "no timestamp": (without(STAMP), BODY),
    "no signature": (without(SIGNATURE), BODY),
    "empty timestamp": ({**good(), STAMP: ""}, BODY),
    "empty signature": ({**good(), SIGNATURE: ""}, BODY),
    "capitals": ({**good(), SIGNATURE: good()[SIGNATURE].upper()}, BODY),
    "v0=": ({**good(), SIGNATURE: "v0=" + good()[SIGNATURE]}, BODY),
    "another timestamp": ({**good(), STAMP: str(NOW + 1)}, BODY),
    **{f"{age} s": (good(str(NOW - age)), BODY) for age in (300, 301, -60, -61, 0)},
    **{text: (good(text), BODY) for text in ("1_767_225_600", "+1767225600", "01767225600", "1767225600.0", "x")},
    "milliseconds": (good(str(NOW * 1000)), BODY),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_bridge_accepts_what_the_sdk_accepts(bridge, name) -> None:
    http, url = bridge
    headers, body = CASES[name]
    with mock.patch("extend_ai.wrapper.webhooks.time.time", return_value=NOW):
        expected = 200 if Webhooks().verify(body.decode(), headers, SECRET) else 401
    assert (await http.post(url, content=body, headers=headers)).status_code == expected


@pytest.mark.parametrize("headers", [{**good(), SIGNATURE: b"\xe9" * 64}, {**good(), STAMP: b"\xd9\xa1"}])
async def test_the_bridge_refuses_headers_that_crash_the_sdk(bridge, headers) -> None:
    http, url = bridge
    assert (await http.post(url, content=BODY, headers=headers)).status_code == 401


async def test_the_bridge_verifies_the_bytes_of_a_body_that_crashes_the_sdk(bridge) -> None:
    http, url = bridge
    body = b"\xff\xfe"
    assert (await http.post(url, content=body, headers=good(body=body))).status_code == 200
    assert (await http.post(url, content=body + b"!", headers=good(body=body))).status_code == 401
