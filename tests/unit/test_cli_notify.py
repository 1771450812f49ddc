"""``everyrun notify`` on a notifier that `respx` plays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import respx

from everyrun.cli import exits
from tests.unit.cli import everyrun, page

NOTIFIER = "http://notifier.example"
URL = f"{NOTIFIER}/v1/receivers"
ENV = {"EVERYRUN_NOTIFIER_URL": NOTIFIER}
RECEIVER: dict[str, Any] = {
    "receiver_id": "rcv_1",
    "url": "https://app.example.com/hooks?[hidden]",
    "format": "extend",
    "events": ["workflow_run.completed", "workflow_run.failed"],
    "workflows": [],
    "description": "",
    "state": "active",
    "created_at": "2026-03-01T10:00:00+00:00",
    "created_by": "bootstrap",
    "failures": 0,
    "failing_since": None,
    "last_error": None,
    "previous_until": None,
    "waiting": 1,
    "delivered": 20,
    "given_up": 3,
    "oldest_waiting": None,
}
DELIVERY: dict[str, Any] = {
    "notification_id": "ntf_1",
    "event": "workflow_run.failed",
    "subject": "run_1",
    "state": "given_up",
    "attempts": 2,
    "created_at": "2026-03-01T10:00:00+00:00",
    "ended_at": "2026-03-01T10:00:00+00:00",
    "next_at": None,
    "tries": [
        {"at": "", "status": None, "seconds": 1, "answer": "", "error": "refused"},
        {"at": "", "status": 500, "seconds": 1, "answer": "[no]", "error": ""},
    ],
}


@respx.mock
def test_add_sends_the_events_and_prints_only_the_secret_to_standard_output(tmp_path: Path) -> None:
    route = respx.post(URL).respond(201, json={"receiver": RECEIVER, "secret": "wss_1"})
    (tmp_path / "secret").write_text("wss_mine_0123456789\n")
    options = ("--events", "workflow_run.failed, workflow_run.completed", "--workflow", "workflow_a")
    done = everyrun("notify", "add", "https://a.example", *options, "--secret-file", str(tmp_path / "secret"), **ENV)
    assert (done.exit_code, done.stdout) == (0, "wss_1\n")
    assert "everyrun notify test rcv_1" in done.stderr
    sent = json.loads(route.calls.last.request.content)
    assert sent["events"] == ["workflow_run.failed", "workflow_run.completed"]
    assert (sent["workflows"], sent["secret"]) == (["workflow_a"], "wss_mine_0123456789")


def test_without_the_notifiers_url_the_message_names_the_setting() -> None:
    done = everyrun("notify", "list")
    assert done.exit_code == exits.NOT_FOUND
    assert "EVERYRUN_NOTIFIER_URL is not set" in done.stderr


def test_a_secret_that_cannot_be_read_is_an_error_without_a_request(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    done = everyrun("notify", "rotate", "rcv_1", "--secret-file", missing, **ENV)
    assert done.exit_code == exits.USAGE
    assert missing in done.stderr.replace("\n", "")


@respx.mock
def test_the_list_shows_the_numbers_and_which_receiver_fails() -> None:
    failing = {**RECEIVER, "receiver_id": "rcv_2", "failures": 7, "last_error": "answered 503 [x]"}
    respx.get(URL).respond(json={"receivers": [RECEIVER, failing]})
    lines = everyrun("notify", "list", **ENV).stdout.splitlines()
    (one,) = [line for line in lines if "rcv_1" in line]
    (other,) = [line for line in lines if "rcv_2" in line]
    assert [word in one for word in ("active", " 1 ", " 20 ", " 3 ")] == [True] * 4
    assert "failing" in other
    assert "answered 503 [x]" in other


@respx.mock
def test_the_empty_list_says_how_to_add_a_receiver() -> None:
    respx.get(URL).respond(json={"receivers": []})
    assert "everyrun notify add" in everyrun("notify", "list", **ENV).stderr


@respx.mock
def test_deliveries_show_the_last_try() -> None:
    respx.get(f"{URL}/rcv_1/deliveries").mock(return_value=page("deliveries", [DELIVERY]))
    done = everyrun("notify", "deliveries", "rcv_1", "--state", "given_up", **ENV)
    assert "500 [no]" in done.stdout
    assert "refused" not in done.stdout
    written = everyrun("notify", "deliveries", "rcv_1", "--json", **ENV)
    assert json.loads(written.stdout) == [DELIVERY]


@respx.mock
def test_resend_sends_ids_or_a_state_and_fails_if_an_id_is_unknown() -> None:
    route = respx.post(f"{URL}/rcv_1/resend").respond(202, json={"resent": 2, "unknown": []})
    done = everyrun("notify", "resend", "rcv_1", "--state", "given_up", "--since", "2d", **ENV)
    assert (done.exit_code, "2 deliveries are sent again" in done.stderr) == (0, True)
    assert json.loads(route.calls.last.request.content) == {"state": "given_up", "since_seconds": 172_800.0}
    route.respond(202, json={"resent": 0, "unknown": ["ntf_9"]})
    done = everyrun("notify", "resend", "rcv_1", "ntf_9", **ENV)
    assert (done.exit_code, "ntf_9" in done.stderr) == (exits.NOT_FOUND, True)
    for wrong in (["ntf_9", "--state", "all"], [], ["--state", "all", "--since", "long"]):
        assert everyrun("notify", "resend", "rcv_1", *wrong, **ENV).exit_code == exits.USAGE


@respx.mock
def test_the_overlap_of_a_rotation_may_be_none() -> None:
    rotated = {"receiver_id": "rcv_1", "secret": "wss_2", "previous_until": None}
    route = respx.post(f"{URL}/rcv_1/rotate").respond(json=rotated)
    done = everyrun("notify", "rotate", "rcv_1", "--overlap", "none", **ENV)
    assert (done.stdout, "is not valid any more" in done.stderr) == ("wss_2\n", True)
    assert json.loads(route.calls.last.request.content) == {"overlap_seconds": 0.0, "secret": None}


@respx.mock
def test_a_test_event_that_is_refused_ends_with_an_error() -> None:
    answer = {"accepted": False, "status": 401, "seconds": 0.1, "answer": "no", "error": ""}
    route = respx.post(f"{URL}/rcv_1/test").respond(json=answer)
    done = everyrun("notify", "test", "rcv_1", **ENV)
    assert (done.exit_code, "it answered 401 no" in done.stderr) == (exits.ERROR, True)
    route.respond(json={**answer, "accepted": True, "status": 204})
    assert everyrun("notify", "test", "rcv_1", **ENV).exit_code == 0


@respx.mock
def test_pause_resume_remove_and_show_name_what_waits() -> None:
    for action in ("pause", "resume"):
        respx.post(f"{URL}/rcv_1/{action}").respond(json=RECEIVER)
        assert "1 delivery waits" in everyrun("notify", action, "rcv_1", **ENV).stderr
    respx.delete(f"{URL}/rcv_1").respond(json={"receiver_id": "rcv_1", "waiting": 4})
    assert "4 waiting deliveries will not be sent" in everyrun("notify", "remove", "rcv_1", **ENV).stderr
    respx.get(f"{URL}/rcv_1").mock(return_value=httpx.Response(200, json=RECEIVER))
    shown = everyrun("notify", "show", "rcv_1", **ENV).stdout
    assert "workflow_run.completed, workflow_run.failed" in shown
    assert "failing since" not in shown
