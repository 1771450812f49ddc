"""Requests to receivers are signed, follow no redirect, keep little of an answer, and reach only allowed addresses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp.resolver import ThreadedResolver
from extend_ai.wrapper.webhooks import Webhooks
from standardwebhooks.webhooks import Webhook

from everyrun.notifier.notifications import trial_notification
from everyrun.notifier.transport import KEPT, Target, Transport, readable, signed_headers, url_problem
from everyrun.serve import http_server, respond
from everyrun.settings import Settings
from tests.conftest import free_port
from tests.unit.test_notifier_notifications import made, polled, run

WSS, OLD_WSS = "wss_0123456789abcdef", "wss_fedcba9876543210"
WHSEC, OLD_WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OPEN = Settings(notify_private=True, notify_timeout=5)
SHUT = Settings()


def test_extends_sdk_verifies_and_parses_what_a_consumer_gets() -> None:
    body = made("runs", polled(run())).body
    headers = signed_headers(Target("https://a.example", "extend", WSS), "ntf_1", body, datetime.now(UTC))
    event: Any = Webhooks().verify_and_parse(body.decode(), headers, WSS)
    parsed = event if isinstance(event, dict) else json.loads(event.json())
    assert (parsed.get("eventType") or parsed["event_type"]) == "workflow_run.completed"


def test_extends_sdk_verifies_and_parses_the_test_event() -> None:
    body = trial_notification("extend", "test_1", "").body
    headers = signed_headers(Target("https://a.example", "extend", WSS), "test_1", body, datetime.now(UTC))
    Webhooks().verify_and_parse(body.decode(), headers, WSS)


@pytest.mark.parametrize(("left", "signs"), [(60, OLD_WSS), (-1, WSS)])
def test_the_previous_secret_signs_extends_format_until_its_time_ends(left: int, signs: str) -> None:
    now = datetime.now(UTC)
    target = Target("https://a.example", "extend", WSS, OLD_WSS, now + timedelta(seconds=left))
    headers = signed_headers(target, "ntf_1", b"{}", now)
    accepted = [secret for secret in (WSS, OLD_WSS) if Webhooks().verify("{}", headers, secret)]
    assert accepted == [signs]


def test_both_secrets_sign_everyruns_format_while_both_are_valid() -> None:
    now = datetime.now(UTC)
    target = Target("https://a.example", "everyrun", WHSEC, OLD_WHSEC, now + timedelta(seconds=60))
    headers = signed_headers(target, "ntf_1", b"{}", now)
    assert headers["webhook-id"] == "ntf_1"
    for secret in (WHSEC, OLD_WHSEC):
        Webhook(secret).verify(b"{}", headers)
    later = signed_headers(target, "ntf_1", b"{}", now + timedelta(seconds=61))
    assert len(later["webhook-signature"].split()) == 1


PUBLIC_ONLY = "EVERYRUN_NOTIFY_PRIVATE"


@pytest.mark.parametrize(
    ("url", "settings", "says"),
    [
        ("https://app.example.com/hooks?key=1", SHUT, None),
        ("http://app.example.com/hooks", SHUT, "EVERYRUN_NOTIFY_HTTP"),
        ("http://app.example.com/hooks", Settings(notify_http=True), None),
        ("http://127.0.0.1:9000/", SHUT, PUBLIC_ONLY),
        ("http://localhost:9000/", SHUT, PUBLIC_ONLY),
        ("http://127.0.0.1:9000/", OPEN, None),
        ("http://localhost:9000/", OPEN, None),
        ("http://[::1]:9000/", OPEN, None),
        ("http://10.0.0.1/", OPEN, "EVERYRUN_NOTIFY_HTTP"),
        ("https://10.0.0.1/", OPEN, None),
        ("https://10.0.0.1/", SHUT, PUBLIC_ONLY),
        ("https://169.254.169.254/latest", SHUT, PUBLIC_ONLY),
        ("https://[::ffff:10.0.0.1]/", SHUT, PUBLIC_ONLY),
        ("https://user:password@app.example.com/", SHUT, "without a user"),
        ("ftp://app.example.com/", SHUT, "http(s)"),
        ("app.example.com", SHUT, "http(s)"),
        ("https://app.example.com/\r\nhost: x", SHUT, "ASCII"),
        ("https://" + "a" * 2000, SHUT, "2,000"),
    ],
)
def test_a_url_must_be_https_and_public_unless_a_setting_allows_more(
    url: str, settings: Settings, says: str | None
) -> None:
    problem = url_problem(url, settings)
    assert (problem is None) if says is None else (problem is not None and says in problem)


def test_an_answer_is_kept_short_on_one_line_and_without_secrets() -> None:
    assert readable(b"no\n  such\x00 thing\xff") == "no such\ufffd thing\ufffd"
    assert len(readable(b"x" * 5000)) == KEPT
    assert "0123456789abcdef" not in readable(f"bad {WSS} and Bearer abcdefgh".encode(), [WSS])
    assert "abcdefgh" not in readable(b"bad Bearer abcdefgh")


class Receiver:
    """An HTTP server that answers as the test says, and keeps what it got."""

    def __init__(self) -> None:
        self.port = free_port()
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status, self.answer, self.more = 200, b"ok", [(b"x", b"y")]
        self.hangs = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        self.got.append(({k.decode(): v.decode() for k, v in scope["headers"]}, body))
        if self.hangs:
            await asyncio.sleep(60)
        await respond(send, self.status, self.answer, more=self.more)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    async with http_server(f"127.0.0.1:{one.port}", one, drain=0):
        yield one


def target(receiver: Receiver, host: str = "127.0.0.1") -> Target:
    return Target(f"http://{host}:{receiver.port}/hook", "extend", WSS)


async def test_a_request_carries_the_body_as_it_is_and_its_signature(receiver: Receiver) -> None:
    body = '{"eventId":"e","eventType":"workflow_run.completed","payload":{"ü":1}}'.encode()
    async with Transport(OPEN) as transport:
        outcome = await transport.send(target(receiver), "ntf_1", body)
    assert (outcome.status, outcome.answer, outcome.accepted) == (200, "ok", True)
    ((headers, got),) = receiver.got
    assert got == body
    assert Webhooks().verify(got.decode(), headers, WSS)
    assert headers["content-type"] == "application/json"


async def test_a_redirect_is_not_followed_and_counts_as_a_failure(receiver: Receiver) -> None:
    receiver.status, receiver.more = 307, [(b"location", f"http://127.0.0.1:{receiver.port}/other".encode())]
    async with Transport(OPEN) as transport:
        outcome = await transport.send(target(receiver), "ntf_1", b"{}")
    assert (outcome.status, outcome.accepted, len(receiver.got)) == (307, False, 1)


async def test_an_answer_may_ask_for_more_time_and_be_long(receiver: Receiver) -> None:
    receiver.status, receiver.more, receiver.answer = 503, [(b"retry-after", b"17")], b"z" * 3_000_000
    async with Transport(OPEN) as transport:
        outcome = await transport.send(target(receiver), "ntf_1", b"{}")
    assert (outcome.status, outcome.retry_after, outcome.answer) == (503, 17.0, "z" * KEPT)


async def test_a_receiver_that_does_not_answer_in_time_has_failed(receiver: Receiver) -> None:
    receiver.hangs = True
    async with Transport(Settings(notify_private=True, notify_timeout=0.3)) as transport:
        outcome = await transport.send(target(receiver), "ntf_1", b"{}")
    assert (outcome.status, outcome.error) == (None, "no answer within 0.3 s")


async def test_a_receiver_that_is_down_has_failed_with_the_reason() -> None:
    async with Transport(OPEN) as transport:
        outcome = await transport.send(Target(f"http://127.0.0.1:{free_port()}/", "extend", WSS), "ntf_1", b"{}")
    assert outcome.status is None
    assert "Connect" in outcome.error or "refused" in outcome.error


async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is checked when the connection is opened, so a name that changes its address later is found out too."""

    async def resolve(_self: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        entry = {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [entry]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    shut = Settings(notify_http=True)
    async with Transport(shut) as transport:
        outcome = await transport.send(target(receiver, "innocent.example"), "ntf_1", b"{}")
    assert outcome.status is None
    assert "innocent.example has an address that is not public" in outcome.error
    assert receiver.got == []
    async with Transport(Settings(notify_http=True, notify_private=True)) as transport:
        assert (await transport.send(target(receiver, "innocent.example"), "ntf_1", b"{}")).accepted


async def test_a_url_that_a_setting_no_longer_allows_is_not_used(receiver: Receiver) -> None:
    async with Transport(SHUT) as transport:
        outcome = await transport.send(target(receiver), "ntf_1", b"{}")
    assert "EVERYRUN_NOTIFY_PRIVATE" in outcome.error
    assert receiver.got == []
