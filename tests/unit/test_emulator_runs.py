"""Runs, how they are rendered, and the content of their webhooks."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import msgspec
import pytest
from extend_ai.types import WorkflowRun, WorkflowRunSummary

from everyrun.emulator import render
from everyrun.emulator.faults import Dice
from everyrun.emulator.rate_limits import RateLimits
from everyrun.emulator.runs import STATUSES, STEPS, Plan, Run
from everyrun.emulator.store import Store, run_write
from everyrun.emulator.validate import ApiProblem
from everyrun.emulator.webhook_content import LINK_SECONDS, Event, Links, body, corrupted, payload, sign

FIRST_START = 1_767_225_600.0


def a_run(number: int = 0, **more) -> Run:
    file = b'{"url":"https://files.example.com/dir/1.pdf?sig=abc"}'
    times = {"starts_at": FIRST_START + 1, "ends_at": FIRST_START + 2, "updated_at": FIRST_START + 2}
    return Run(
        number, f"workflow_run_{number}", "batch_1", "workflow_1", "2", file, b'{"row":1}', FIRST_START, **times | more
    )


def test_a_plan_follows_from_the_seed():
    def lives(seed: int) -> list[tuple]:
        plan = Plan(Dice(seed, {"fail": 0.3, "review": 0.3}), seed, 0.5, 2.0)
        runs = [a_run(number) for number in range(200)]
        for run in reversed(runs):
            plan.schedule(run, FIRST_START)
        return [(plan.run_id(run.number), run.outcome, run.starts_at, run.ends_at) for run in runs]

    assert lives(1) == lives(1)
    assert lives(1) != lives(2)
    assert {outcome for _, outcome, _, _ in lives(1)} == {"PROCESSED", "FAILED", "NEEDS_REVIEW"}
    assert all(FIRST_START <= start <= end and 0.5 <= end - FIRST_START <= 2.0 for _, _, start, end in lives(1))


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_in_any_status_passes_the_sdk_types_strictly(status: str):
    run = a_run(status=status, outcome=status)
    whole = json.loads(msgspec.json.encode(render.run(run, FIRST_START)))
    summary = json.loads(msgspec.json.encode(render.summary(run, FIRST_START)))
    assert WorkflowRun.model_validate(whole).status == status
    assert WorkflowRunSummary.model_validate(summary).status == status
    # By their aliases: every field of the types is there, null where there is nothing to say.
    optional = {"createdBy", "processingErrors"}
    for shown, kind in ((whole, WorkflowRun), (summary, WorkflowRunSummary)):
        assert {field.alias or name for name, field in kind.model_fields.items()} - optional <= set(shown)
    assert (whole["failureReason"] is not None) == (status == "FAILED")
    assert (whole["endTime"] is not None) == (status not in ("PENDING", "PROCESSING", "CANCELLING"))
    assert (whole["startTime"] is not None) == (status != "PENDING")
    assert bool(whole["stepRuns"]) == (status in ("PROCESSED", "REJECTED", "NEEDS_REVIEW"))
    for absent in ("metadata", "failureReason", "stepRuns", "reviewed"):
        assert absent not in summary


def test_results_have_the_documented_sizes():
    sizes = [len(msgspec.json.encode(render.run(a_run(n, status="PROCESSED"), FIRST_START))) for n in range(400)]
    large = [size for size in sizes if size > 200_000]
    assert len(large) == 4
    assert all(2_048 <= size <= 6_144 for size in sizes if size not in large)


def test_a_run_cancelled_before_its_start_has_no_start_time():
    shown = render.run(a_run(status="CANCELLED", starts_at=0.0), FIRST_START)
    assert shown["startTime"] is None
    assert shown["endTime"] is not None


def test_times_are_written_in_milliseconds():
    assert render.time(1745859699.285) == "2025-04-28T17:01:39.285Z"
    assert render.time(1745859699.9999999) == "2025-04-28T17:01:40.000Z"
    assert render.time(1745859699.0) == "2025-04-28T17:01:39.000Z"
    assert render.time(None) is None


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (b'{"url":"https://a.example/dir/1.pdf?x=a/b"}', ["1.pdf"]),
        (b'{"url":"https://a.example/1.pdf","name":"mine.csv"}', ["mine.csv"]),
        (b'{"text":"hello"}', ["7-0.txt"]),
        (b'{"id":"file_1","name":"up.pdf"}', ["up.pdf"]),
        (b'{"package":[{"url":"https://a.example/1.pdf"},{"id":"file_1","name":"up.pdf"}]}', ["1.pdf", "up.pdf"]),
    ],
)
def test_files_have_names_and_distinct_ids(file: bytes, names: list[str]):
    run = a_run(7)
    run.file = file
    shown = render.files(run)
    assert [one["name"] for one in shown] == names
    assert len({one["id"] for one in shown}) == len(names)


def test_an_event_shows_the_run_as_it_was_at_the_event():
    run = a_run(status="FAILED")
    failed = Event.of(run)
    run.next_generation()
    run.status, run.ends_at = "PROCESSED", FIRST_START + 9
    processed = Event.of(run)
    assert (failed.type, processed.type) == ("workflow_run.failed", "workflow_run.completed")
    assert failed.id != processed.id
    before, after = (json.loads(payload(event, FIRST_START, 0.0)) for event in (failed, processed))
    assert (before["status"], before["endTime"]) == ("FAILED", render.time(FIRST_START + 2))
    assert (after["status"], after["endTime"]) == ("PROCESSED", render.time(FIRST_START + 9))
    assert Event.of(run).id == processed.id


def test_the_signature_equals_that_of_the_sdk():
    content = (
        b'{"eventId":"event_1234","eventType":"workflow_run.completed",'
        b'"payload":{"object":"workflow_run","id":"workflow_run_1234"}}'
    )
    expected = "2ab82504b8c1b709603a196e5979980158ebbfe8abd3516ff5c56b39f1b7d164"
    assert sign("wss_example_secret_0123456789", "1767225600", content) == expected
    assert corrupted(content) != content
    assert len(corrupted(content)) == len(content)


def test_a_body_above_the_threshold_is_a_link():
    event, links = Event.of(a_run(status="PROCESSED")), Links("http://here", b"key")
    size = len(payload(event, FIRST_START, 0.0))

    def kind(**options: object) -> str:
        return json.loads(body(event, FIRST_START, 0.0, options, links))["payload"]["object"]

    assert kind() == kind(format="json") == kind(format="url", urlThresholdBytes=size) == "workflow_run"
    assert kind(format="url", urlThresholdBytes=size - 1) == kind(format="url") == "signed_data_url"
    step = json.loads(body(Event.of(event.run, len(STEPS) - 1), FIRST_START, 0.0, {"format": "url"}, links))
    assert set(step["payload"]) == {"object", "data"}


def test_a_link_is_valid_for_an_hour_and_cannot_be_forged():
    event, links = Event.of(a_run(3, status="PROCESSED")), Links("http://here", b"key")
    token = links.make(event, FIRST_START).removeprefix("http://here/_signed/")
    assert links.read(token, FIRST_START + LINK_SECONDS) == (3, 0, -1, event.id)
    assert links.read(token, FIRST_START + LINK_SECONDS + 1) is None
    assert Links("http://here", b"other").read(token, FIRST_START) is None
    for wrong in ("", ".", "é", "4" + token[1:], token[:-1], token + "0"):
        assert links.read(wrong, FIRST_START) is None


def test_the_rate_limit_of_the_plan_is_kept(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("everyrun.emulator.rate_limits.time.monotonic", lambda: clock[0])
    limits = RateLimits(10)

    def passes(category: str) -> bool:
        try:
            limits.take(category)
        except ApiProblem as problem:
            return (problem.status, problem.headers) != (429, {"retry-after": "1"})
        return True

    def taken(category: str) -> int:
        return sum(passes(category) for _ in range(30))

    assert [taken("get"), taken("run"), taken("get")] == [10, 10, 0]
    clock[0] += 0.5
    assert taken("get") == 5
    clock[0] += 60
    assert taken("get") == 10


async def test_writes_of_one_commit_are_read_after_a_restart(tmp_path):
    store = Store(tmp_path)
    run = a_run(status="FAILED")
    run.next_generation()
    await store.commit(run_write(run))
    run.status, run.delivered = "PROCESSED", 2
    store.changed(run)
    store.enqueue(store.put("file", "file_2", {"name": "b"}), store.put("file", "file_1", {"name": "a"}))
    store.enqueue(store.put("file", "file_2", {"name": "c"}))
    await store.commit()
    again = Store(tmp_path)
    assert again.runs() == [run]
    assert list(again.documents("file").items()) == [("file_2", {"name": "c"}), ("file_1", {"name": "a"})]
    await store.close()
    await again.close()


async def test_every_waiter_of_a_commit_sees_its_writes(tmp_path):
    store = Store(tmp_path)
    reader = sqlite3.connect(tmp_path / "emulator.sqlite")

    async def keep(number: int) -> int:
        await asyncio.sleep(number % 7 / 1000)
        await store.commit(run_write(a_run(number)))
        found = reader.execute("select count(*) from runs where number = ?", (number,))
        return int(found.fetchone()[0])

    assert await asyncio.gather(*(keep(number) for number in range(60))) == [1] * 60
    reader.close()
    await store.close()
