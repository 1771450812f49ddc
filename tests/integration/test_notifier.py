"""The notifier as a process: every event reaches every receiver at least once, whatever fails in between."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.failpoints import POINTS, done
from everyrun.log import events
from everyrun.log.cloudevents import record
from everyrun.log.producer import Producer
from everyrun.settings import Settings
from tests.conftest import eventually
from tests.integration.receivers import TIME, TOKEN, Notifier, ReceiverServer, a_run, listening, poll, webhook
from tests.integration.services import ServiceProcess

pytestmark = pytest.mark.stack

QUICK = {
    "EVERYRUN_API_TOKEN": TOKEN,
    "EVERYRUN_NOTIFY_PRIVATE": "true",
    "EVERYRUN_NOTIFY_TIMEOUT": 5,
    "EVERYRUN_NOTIFY_RETRY_FIRST": 0.2,
    "EVERYRUN_NOTIFY_RETRY_MOST": 1,
}
Start = Callable[..., ServiceProcess]
#: The failpoints of the notifier. CI kills at one of each part; EVERYRUN_CHAOS=1 kills at all of them.
POINTS_HERE = [
    point
    for point in POINTS
    if point.partition(".")[0] in ("planner", "sender")
    and (os.environ.get("EVERYRUN_CHAOS") or point in ("planner.after_commit", "sender.after_store"))
]


def got_all(server: ReceiverServer, numbers: range) -> Callable[[], bool]:
    return lambda: set(server.subjects()) >= {f"run_{number}" for number in numbers}


async def write(settings: Settings, *records: Any) -> None:
    async with Producer(settings) as producer:
        await producer.append(records)


async def write_runs(settings: Settings, numbers: range) -> None:
    await write(settings, *(webhook(a_run(number)) for number in numbers))


async def test_receivers_get_each_change_once_as_extend_sends_it(service: Start, settings: Settings) -> None:
    notifier = Notifier((await service("notifier", **QUICK).ready()).url)
    first, failures = ReceiverServer(), ReceiverServer()
    async with listening(first, failures):
        await notifier.add(first)
        await notifier.add(failures, ["workflow_run.failed"])
        # Webhooks, repeated, then polls of the same states.
        runs = [a_run(n) for n in range(20)] + [a_run(n, "FAILED") for n in range(20, 30)]
        kinds = {"PROCESSED": "workflow_run.completed", "FAILED": "workflow_run.failed"}
        hooks = [webhook(run, kinds[run["status"]]) for run in runs]
        await write(settings, *hooks, *hooks, *map(poll, runs), poll(a_run(30, "FAILED")), poll(a_run(31, "PENDING")))
        await eventually(got_all(first, range(31)), "all events", 60)
        await eventually(got_all(failures, range(20, 31)), "the failures", 60)
        # What follows is sent too, so nothing above is still to come.
        await write_runs(settings, range(40, 41))
        await eventually(got_all(first, range(40, 41)), "the last event", 60)
    assert first.subjects() == Counter([*(f"run_{n}" for n in range(31)), "run_40"])
    assert failures.subjects() == Counter(f"run_{n}" for n in range(20, 31))
    ids = {event["payload"]["id"]: event["eventId"] for event in first.events}
    assert ids["run_3"] == "event_run_3_workflow_run.completed"


async def test_everyruns_own_events_are_standard_webhooks(service: Start, settings: Settings) -> None:
    notifier = Notifier((await service("notifier", **QUICK).ready()).url)
    server = ReceiverServer()
    async with listening(server):
        await notifier.add(server, ["submission-settled", "workflow-paused", "batch-in-doubt", "quarantined"])
        settled = events.SubmissionSettled(submission_id="sub_1", workflow_id="w", expected=1, counts={"FAILED": 1})
        paused = events.WorkflowPaused(workflow_id="w", reason="402", by=None)
        about: dict[str, Any] = {"source": "/test", "time": TIME}
        await write(
            settings,
            record("reports", settled, key="sub_1", id="1", **about),
            record("batches", paused, key="w", id="2", **about),
        )
        await eventually(lambda: len(server.events) == 2, "both events", 60)
    from standardwebhooks.webhooks import Webhook

    assert {event["type"] for event in server.events} == {"submission-settled", "workflow-paused"}
    for headers in server.headers:
        assert headers["webhook-id"].startswith("ntf_")
        assert headers["webhook-signature"].startswith("v1,")
    assert Webhook(server.secret) is not None


async def test_a_receiver_that_is_added_later_gets_only_what_happens_from_then_on(
    service: Start, settings: Settings
) -> None:
    process = await service("notifier", **QUICK).ready()
    notifier = Notifier(process.url)
    early, late = ReceiverServer(), ReceiverServer()
    async with listening(early, late):
        await write_runs(settings, range(5))
        await notifier.add(early)
        await write_runs(settings, range(5, 10))
        await notifier.add(late)
        await write_runs(settings, range(10, 15))
        await eventually(got_all(early, range(5, 15)), "the early receiver has all", 60)
        await eventually(got_all(late, range(10, 15)), "the late receiver has all", 60)
    assert set(early.subjects()) == {f"run_{n}" for n in range(5, 15)}
    assert set(late.subjects()) == {f"run_{n}" for n in range(10, 15)}


@pytest.mark.parametrize("point", POINTS_HERE)
async def test_every_event_arrives_if_the_process_dies_between_two_steps(
    service: Start, settings: Settings, tmp_path: Path, point: str
) -> None:
    # A claim ends after the timeout and 15 s, so a short timeout keeps the test short.
    quick = {**QUICK, "EVERYRUN_NOTIFY_TIMEOUT": 1}
    first = await service("notifier", **quick, EVERYRUN_FAILPOINTS=point).ready()
    one, other = ReceiverServer(), ReceiverServer()
    async with listening(one, other):
        for server in (one, other):
            await Notifier(first.url).add(server)
        await write_runs(settings, range(30))
        await eventually(lambda: first.process.poll() is not None, f"the process died at {point}", 60)
        assert done(tmp_path, point).exists()
        await service("notifier", **quick).ready()
        for server in (one, other):
            await eventually(got_all(server, range(30)), "every event arrived", 90)
    # Whatever arrived twice had the same id.
    for server in (one, other):
        assert len({event["eventId"] for event in server.events}) == 30


async def test_a_dead_and_a_slow_receiver_delay_no_other(service: Start, settings: Settings) -> None:
    """While the dead and the slow receiver still wait for their first answers, the others have everything."""
    process = await service("notifier", **{**QUICK, "EVERYRUN_NOTIFY_TIMEOUT": 600}).ready()
    notifier = Notifier(process.url)
    live, second, dead, slow = (ReceiverServer() for _ in range(4))
    for server in (dead, slow):
        server.held.clear()
    async with listening(live, second, dead, slow):
        for server in (dead, slow, live, second):
            await notifier.add(server)
        await write_runs(settings, range(400))
        for server in (live, second):
            await eventually(got_all(server, range(400)), "a live receiver has everything", 120)
        assert (dead.events, slow.events) == ([], [])
        assert dead.most_open <= 8
        slow.held.set()
        await eventually(got_all(slow, range(400)), "the slow receiver gets everything too", 120)


async def test_a_dead_receiver_gets_one_request_at_a_time_until_it_is_back(service: Start, settings: Settings) -> None:
    process = await service("notifier", **QUICK).ready()
    notifier = Notifier(process.url)
    server = ReceiverServer()
    server.status = 503
    async with listening(server):
        receiver_id = await notifier.add(server)
        await write_runs(settings, range(300))

        async def is_failing() -> bool:
            return bool((await notifier.call("GET", f"/{receiver_id}"))["failures"] >= 8)

        await eventually(is_failing, "the circuit is open", 60)
        shown = await notifier.call("GET", f"/{receiver_id}")
        assert shown["failing_since"] is not None
        assert shown["last_error"] == "answered 503: said the receiver"
        assert shown["waiting"] == 300
        server.most_open, before = 0, server.requests
        await eventually(lambda: server.requests > before + 1, "it is tried again", 60)
        assert server.most_open == 1
        # Most deliveries were never tried, although all are due.
        assert sum(row["attempts"] == 0 for row in await notifier.deliveries(receiver_id, limit=1000)) > 200
        server.status = 200
        await eventually(got_all(server, range(300)), "everything arrives once it is back", 120)
        shown = await notifier.call("GET", f"/{receiver_id}")
    assert (shown["failures"], shown["failing_since"], shown["last_error"]) == (0, None, None)


async def test_deliveries_that_wait_are_sent_after_a_restart(service: Start, settings: Settings) -> None:
    first = await service("notifier", **QUICK).ready()
    server = ReceiverServer()
    server.status = 500
    async with listening(server):
        receiver_id = await Notifier(first.url).add(server)
        await write_runs(settings, range(10))
        await eventually(lambda: server.requests >= 3, "some requests failed", 60)
        assert first.terminate() < 8
        # Written while no notifier runs.
        await write_runs(settings, range(10, 20))
        server.status = 200
        second = await service("notifier", **QUICK).ready()
        await eventually(got_all(server, range(20)), "everything arrives", 60)

        async def all_delivered() -> bool:
            rows = await Notifier(second.url).deliveries(receiver_id, limit=7)
            return len(rows) == 20 and all(row["state"] == "delivered" for row in rows)

        await eventually(all_delivered, "the log shows each delivery", 30)


async def test_a_delivery_is_given_up_after_its_time_and_can_be_resent(service: Start, settings: Settings) -> None:
    quick = {**QUICK, "EVERYRUN_NOTIFY_RETRY_FOR": 1.5}
    notifier = Notifier((await service("notifier", **quick).ready()).url)
    server = ReceiverServer()
    server.status = 400
    async with listening(server):
        receiver_id = await notifier.add(server)
        await write_runs(settings, range(3))

        async def given_up() -> list[dict[str, Any]]:
            rows = await notifier.deliveries(receiver_id, state="given_up")
            return rows if len(rows) == 3 else []

        rows: Any = await eventually(given_up, "all are given up", 90)
        assert all(row["ended_at"] and row["next_at"] is None for row in rows)
        tries = [one for row in rows for one in row["tries"]]
        assert {(one["status"], one["answer"]) for one in tries} == {(400, "said the receiver")}
        server.status = 200
        one = rows[0]["notification_id"]
        wanted = {"notification_ids": [one, "ntf_unknown"]}
        answer = await notifier.call("POST", f"/{receiver_id}/resend", expect=202, json=wanted)
        assert answer == {"resent": 1, "unknown": ["ntf_unknown"]}
        await eventually(lambda: len(server.events) == 1, "the one is sent again", 30)
        answer = await notifier.call("POST", f"/{receiver_id}/resend", expect=202, json={"state": "given_up"})
        assert answer == {"resent": 2, "unknown": []}
        await eventually(got_all(server, range(3)), "the others too", 30)
        answer = await notifier.call("POST", f"/{receiver_id}/resend", expect=202, json={"state": "all"})
        assert answer["resent"] == 3
        await eventually(lambda: len(server.events) == 6, "and all once more", 30)
    assert len({event["eventId"] for event in server.events}) == 3


async def test_a_paused_receiver_gets_its_events_when_it_is_resumed(service: Start, settings: Settings) -> None:
    notifier = Notifier((await service("notifier", **QUICK).ready()).url)
    server = ReceiverServer()
    async with listening(server):
        receiver_id = await notifier.add(server)
        await notifier.call("POST", f"/{receiver_id}/pause")
        await write_runs(settings, range(5))

        async def all_wait() -> bool:
            return bool((await notifier.call("GET", f"/{receiver_id}"))["waiting"] == 5)

        await eventually(all_wait, "the deliveries wait", 60)
        assert (await notifier.call("POST", f"/{receiver_id}/test"))["accepted"]
        assert server.requests == 1
        await notifier.call("POST", f"/{receiver_id}/resume")
        await eventually(lambda: len(server.events) == 6, "all arrive", 60)


async def test_a_removed_receiver_gets_nothing_and_leaves_nothing(service: Start, settings: Settings) -> None:
    notifier = Notifier((await service("notifier", **QUICK, EVERYRUN_NOTIFY_KEPT=0.001).ready()).url)
    gone, stays = ReceiverServer(), ReceiverServer()
    gone.status = 500
    async with listening(gone, stays):
        gone_id, stays_id = await notifier.add(gone), await notifier.add(stays)
        await write_runs(settings, range(5))
        await eventually(got_all(stays, range(5)), "the other has all", 60)
        removed = await notifier.call("DELETE", f"/{gone_id}")
        assert removed == {"receiver_id": gone_id, "waiting": 5}
        await notifier.call("GET", f"/{gone_id}", expect=404)
        rows = (await notifier.call("GET"))["receivers"]
        assert [row["receiver_id"] for row in rows] == [stays_id]
        connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
        try:
            assert (
                await connection.fetchval("select secret from everyrun_queue.receivers where state = 'removed'") == ""
            )
            # A new process cleans up as soon as it has started.
            await service("notifier", **QUICK, EVERYRUN_NOTIFY_KEPT=0.001).ready()
            tables = ("notification_deliveries", "notifications")

            async def is_clean() -> bool:
                numbers = [await connection.fetchval(f"select count(*) from everyrun_queue.{name}") for name in tables]
                receivers = await connection.fetchval("select count(*) from everyrun_queue.receivers")
                return [*numbers, receivers] == [0, 0, 1]

            await eventually(is_clean, "only the other receiver is left", 60)
        finally:
            await connection.close()


async def test_a_secret_is_shown_once_and_a_rotation_keeps_the_old_one_valid(
    service: Start, settings: Settings
) -> None:
    process = await service("notifier", **QUICK).ready()
    notifier = Notifier(process.url)
    server = ReceiverServer()
    async with listening(server):
        receiver_id = await notifier.add(server, secret="wss_secret_of_my_consumer")
        assert server.secret == "wss_secret_of_my_consumer"
        rotated = await notifier.call("POST", f"/{receiver_id}/rotate", json={"overlap_seconds": 600})
        assert rotated["previous_until"] is not None
        # The receiver knows only the old secret, which signs until the overlap ends.
        assert (await notifier.call("POST", f"/{receiver_id}/test"))["accepted"]
        again = await notifier.call("POST", f"/{receiver_id}/rotate", json={"overlap_seconds": 0})
        refused = await notifier.call("POST", f"/{receiver_id}/test")
        assert (refused["accepted"], refused["status"]) == (False, 401)
        server.secret = again["secret"]
        assert (await notifier.call("POST", f"/{receiver_id}/test"))["accepted"]
        shown = str(await notifier.call("GET")) + str(await notifier.call("GET", f"/{receiver_id}"))
    secrets = ("wss_secret_of_my_consumer", rotated["secret"], again["secret"])
    assert not any(secret in text for secret in secrets for text in (shown, process.log.read_text()))


async def test_the_api_refuses_what_is_wrong_with_the_field_and_the_remedy(service: Start, settings: Settings) -> None:
    process = await service("notifier", EVERYRUN_API_TOKEN=TOKEN).ready()
    notifier = Notifier(process.url)
    good = {"url": "https://app.example.com/hooks", "events": ["workflow_run.*"]}
    for wrong, field in (
        ({"url": "http://127.0.0.1:1/"}, "url"),
        ({"events": ["nothing"]}, "events"),
        ({"events": ["quarantined"], "workflows": ["w"]}, "workflows"),
        ({"secret": "short"}, "secret"),
        ({"events": ["quarantined"], "secret": "wss_0123456789abcdef"}, "secret"),
    ):
        answer = await notifier.call("POST", expect=422, json={**good, **wrong})
        assert answer["field"] == field, answer
        assert answer["message"].startswith(f"{field}: ")
    for path, body in (("/pause", None), ("/rotate", {}), ("/test", None), ("/resend", {"state": "all"})):
        await notifier.call("POST", f"/rcv_unknown{path}", expect=404, json=body)
    await notifier.call("GET", "/rcv_unknown/deliveries", expect=404)
    added = await notifier.call("POST", expect=201, json=good)
    receiver_id = added["receiver"]["receiver_id"]
    await notifier.call("GET", f"/{receiver_id}/deliveries", expect=422, params={"cursor": "nonsense"})
    await notifier.call("POST", f"/{receiver_id}/resend", expect=422, json={})
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{process.url}/v1/receivers")).status_code == 401
