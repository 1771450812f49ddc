"""Cancellations on a real Kafka and Postgres with a fake Extend that has a run for each input of a batch."""

# ruff: noqa: F811
from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from everyrun.extend.client import ExtendError, Page
from everyrun.log import topics
from everyrun.log.cloudevents import record, timestamp
from everyrun.log.events import RunObserved
from everyrun.submission.app import wire
from everyrun.submission.cancellations.outcomes import MAX_REFUSALS
from everyrun.submission.dispatch.dispatcher import Dispatcher
from everyrun.submission.recovery.queue_recovery import catch_up
from tests.integration.conftest import read_topic
from tests.integration.test_cut import chunks, counts, error, hand_in, send_all
from tests.integration.test_doubts import INSTALLATION, NO_ANSWER, Vendor, World, world  # noqa: F401

WHY = {"reason": "the wrong folder", "by": "ann"}
PER_CHUNK = 4


class Runs(Vendor):
    """An Extend with a run for each input. It cancels runs that are PENDING or PROCESSING, and refuses others."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, dict[str, Any]] = {}
        self.cancels: list[str] = []
        self.lists: list[str] = []
        self.gets: list[str] = []
        self.fails: Callable[[str], ExtendError | None] = lambda run_id: None

    async def create_batch(self, body: bytes) -> httpx.Response:
        try:
            return await super().create_batch(body)
        finally:
            batch_id = f"batch_{len(self.calls)}"
            for n, given in enumerate(self.calls[-1]["inputs"] if batch_id in self.batches else []):
                self.add(f"run_{batch_id}_{n}", batch_id, "PENDING", given["metadata"])

    def add(self, run_id: str, batch_id: str, status: str, metadata: Any) -> None:
        head = {"object": "workflow_run", "id": run_id, "batchId": batch_id}
        self.runs[run_id] = {**head, "status": status, "metadata": metadata}

    async def list_runs(self, within: float, **query: Any) -> Page:
        self.lists.append(query["batchId"])
        found = [
            {name: value for name, value in run.items() if name != "metadata"}
            for run in self.runs.values()
            if run["batchId"] == query["batchId"]
        ]
        return Page(found, None, datetime.now(UTC))

    async def get_run(self, run_id: str, within: float) -> bytes:
        self.gets.append(run_id)
        return json.dumps(self.runs[run_id]).encode()

    async def cancel_run(self, run_id: str, within: float) -> bytes:
        if (failure := self.fails(run_id)) is not None:
            raise failure
        if run_id not in self.runs:
            raise ExtendError(404, "NOT_FOUND", "no such run", from_extend=True)
        run = self.runs[run_id]
        if run["status"] not in ("PENDING", "PROCESSING"):
            raise ExtendError(400, "INVALID_REQUEST", "the run cannot be cancelled", from_extend=True)
        self.cancels.append(run_id)
        run["status"] = "CANCELLING"
        return json.dumps(run).encode()

    def end(self, **statuses: str) -> None:
        """Give each run whose status is a key the status that belongs to it."""
        for run in self.runs.values():
            run["status"] = statuses.get(run["status"], run["status"])


class Job:
    """The world with an Extend that has runs; other parts of the service as after a restart."""

    def __init__(self, world: World) -> None:
        self.world, self.vendor = world, Runs()
        world.vendor = self.vendor
        world.settings.chunk_max_inputs = PER_CHUNK
        self.restart()

    def restart(self) -> None:
        """Wire the service again, as a new process does."""
        world, extend = self.world, self.vendor
        given: Any = extend
        service = wire(world.settings, world.pool, given, world.producer, INSTALLATION)
        world.recovery, world.dispatcher, world.resolver = service.recovery, service.dispatcher, service.resolver
        world.announcer, self.cancellations = service.announcer, service.cancellations
        headers = {"authorization": "Bearer token"}
        transport = httpx.ASGITransport(service.api)
        world.api = httpx.AsyncClient(base_url="http://submission", headers=headers, transport=transport)

    async def cancel(self, submission: str, status: int = 202, **body: Any) -> dict[str, Any]:
        answer = await self.world.api.post(f"/v1/submissions/{submission}/cancellations", json={**WHY, **body})
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    async def show(self, cancellation: str) -> dict[str, Any]:
        answer = await self.world.api.get(f"/v1/cancellations/{cancellation}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def look(self) -> None:
        """Let the job look at every open cancellation now."""
        await self.world.pool.execute("update everyrun_queue.cancellations set next_at = now() where ended_at is null")
        await self.cancellations.work()

    async def observe(self) -> None:
        """Publish a webhook of each run at rest, and apply the log."""
        now = timestamp(datetime.now(UTC))
        for run in self.vendor.runs.values():
            if run["status"] not in ("PENDING", "PROCESSING", "CANCELLING"):
                event = RunObserved(source="webhook", run=msgspec.Raw(json.dumps(run).encode()))
                key = run["metadata"].get("everyrun:input", {}).get("chunk", run["batchId"])
                said = record(
                    "runs", event, key=key.partition("-")[0], id=f"{run['id']}/{now}", source="/test", time=now
                )
                await self.world.producer.append([said])
        await self.world.project()

    async def settle(self) -> None:
        """Let Extend complete the cancellations, and let Everyrun see it."""
        self.vendor.end(CANCELLING="CANCELLED")
        await self.observe()
        await self.look()


@pytest.fixture
def job(world: World) -> Job:
    return Job(world)


async def statuses(world: World, submission: str) -> dict[str, tuple[str, str | None]]:
    await world.project()
    rows = await world.pool.fetch(
        "select external_id, status, failure_reason from everyrun.results where submission_id = $1", submission
    )
    return {row["external_id"]: (row["status"], row["failure_reason"]) for row in rows}


async def test_what_waits_is_cancelled_at_once_and_what_runs_at_extend(job: Job, world: World) -> None:
    submission = await hand_in(world, 3 * PER_CHUNK)
    await world.send()
    await world.project()
    job.vendor.runs["run_batch_1_0"]["status"] = "PROCESSED"
    job.vendor.runs["run_batch_1_1"]["status"] = "NEEDS_REVIEW"
    preview = await job.cancel(submission, dry_run=True)
    assert preview["cancellation_id"] is None
    counted = {"not_sent": 8, "calling": 0, "in_doubt": 0, "at_extend": 4, "in_review": 0, "settled": 0}
    assert preview["inputs"] == counted
    assert "cancellation-requested" not in await world.said(), "a dry run changes nothing"

    done = await job.cancel(submission)
    assert done["inputs"] == counted
    assert not await world.dispatcher.send_one(), "nothing is sent after the answer, even before the job looks"
    await job.look()
    assert sorted(job.vendor.cancels) == ["run_batch_1_2", "run_batch_1_3"]
    assert await counts(world, submission) == {"CANCELLED": 8, "SUBMITTED": 4}
    shown = await job.show(done["cancellation_id"])
    assert shown["ended_at"] is None
    assert shown["inputs"] | {"settled": 8, "at_extend": 4} == shown["inputs"]

    await job.settle()
    assert await counts(world, submission) == {"CANCELLED": 10, "PROCESSED": 1, "NEEDS_REVIEW": 1}
    unsent = {name for name, (_, reason) in (await statuses(world, submission)).items() if reason == "CANCELLED_UNSENT"}
    assert unsent == {f"row-{n}" for n in range(5, 13)}
    shown = await job.show(done["cancellation_id"])
    assert shown["ended_at"] is not None
    found = {"cancelled_unsent": 8, "cancelled": 2, "finished": 1, "in_review": 1, "refused": 0, "gone": 0}
    assert shown["outcomes"] == found
    lines = await world.pool.fetch("select * from everyrun.report where submission_id = $1", submission)
    assert all(line["balanced"] for line in lines)
    kinds = [event["type"] for event, _ in await read_topic(world.settings, "batches")]
    assert kinds.count("batch-cancelled") == 2
    decision = await world.pool.fetchrow("select * from everyrun.decisions where kind = 'cancellation-requested'")
    assert (decision["source"], decision["decided_by"], decision["reason"]) == (
        done["cancellation_id"],
        "ann (bootstrap)",
        "the wrong folder",
    )
    listed = (await world.api.get("/v1/cancellations", params={"submission_id": submission})).json()["cancellations"]
    assert [one["cancellation_id"] for one in listed] == [done["cancellation_id"]]


async def test_if_nothing_can_be_cancelled_no_event_is_written(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    await job.cancel(submission)
    await job.look()
    await world.project()
    again = await job.cancel(submission)
    assert (again["cancellation_id"], again["inputs"]["settled"]) == (None, PER_CHUNK)
    assert (await world.said()).count("cancellation-requested") == 1
    assert (await world.api.post("/v1/submissions/sub_x/cancellations", json=WHY)).status_code == 404
    assert (await world.api.post("/v1/batches/batch_x/cancellations", json=WHY)).status_code == 404
    assert (await world.api.get("/v1/cancellations/can_x")).status_code == 404


@pytest.mark.parametrize(
    ("answer", "status", "kinds"),
    [
        (error(429, "wait"), "CANCELLED", ["batch-cancelled", "batch-returned"]),
        (error(400, "no"), "CANCELLED", ["batch-cancelled"]),
        (httpx.Response(200, json={"batchId": "batch_1"}), "SUBMITTED", ["batch-submitted"]),
    ],
)
async def test_a_call_in_progress_is_completed_and_its_chunk_is_not_sent_again(
    job: Job, world: World, answer: httpx.Response, status: str, kinds: list[str]
) -> None:
    submission = await hand_in(world, PER_CHUNK)

    async def cancel() -> None:
        done = await job.cancel(submission)
        assert done["inputs"]["calling"] == PER_CHUNK
        await job.look()

    job.vendor.during = cancel
    await world.send(answer)
    assert await counts(world, submission) == {status: PER_CHUNK}
    assert await world.said() == sorted(["batch-requested", "cancellation-requested", *kinds])
    assert not await world.dispatcher.send_one()
    await job.look()
    assert len(job.vendor.cancels) == (PER_CHUNK if status == "SUBMITTED" else 0)


async def test_a_claim_that_did_not_call_yet_does_not_call_any_more(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    append, cancelled = world.producer.append, False

    async def cancel_before(records: Any) -> Any:
        nonlocal cancelled
        answer = await append(records)
        if not cancelled and any(("ce_type", b"batch-requested") in one.headers for one in records):
            cancelled = True
            await job.cancel(submission)
        return answer

    world.producer.append = cancel_before  # type: ignore[method-assign]
    await world.dispatcher.send_one()
    assert cancelled
    assert not job.vendor.calls
    assert await counts(world, submission) == {"CANCELLED": PER_CHUNK}


async def test_a_call_in_doubt_is_cancelled_after_the_window_and_late_evidence_counts(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    await world.send(NO_ANSWER, takes=True)
    await world.project()
    done = await job.cancel(submission)
    assert done["inputs"]["in_doubt"] == PER_CHUNK
    await job.look()
    assert (await world.chunk())["state"] == "in_doubt"
    await world.project()
    await world.window_passes()
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "cancelled"
    assert await counts(world, submission) == {"CANCELLED": PER_CHUNK}
    # A run of the call appears after all: it is bound, and cancelled at Extend.
    job.vendor.runs["run_batch_1_0"]["status"] = "PROCESSED"
    await job.observe()
    await world.resolver.resolve()
    await world.project()
    assert await counts(world, submission) == {"SUBMITTED": PER_CHUNK - 1, "PROCESSED": 1}
    assert (await job.show(done["cancellation_id"]))["ended_at"] is None
    await job.look()
    assert len(job.vendor.cancels) == PER_CHUNK - 1
    await job.settle()
    assert await counts(world, submission) == {"CANCELLED": PER_CHUNK - 1, "PROCESSED": 1}
    assert (await job.show(done["cancellation_id"]))["ended_at"] is not None


async def test_a_process_that_ends_between_calls_and_their_outcomes_loses_nothing(job: Job, world: World) -> None:
    submission = await hand_in(world, 2 * PER_CHUNK)
    await send_all(world)
    await world.project()
    done = await job.cancel(submission)

    def dies_at_the_third(run_id: str) -> ExtendError | None:
        if len(job.vendor.cancels) == 2:
            raise asyncio.CancelledError
        return None

    job.vendor.fails = dies_at_the_third
    with pytest.raises(asyncio.CancelledError):
        await job.look()
    assert len(job.vendor.cancels) == 2
    job.vendor.fails = lambda run_id: None
    job.restart()
    await job.look()
    assert len(job.vendor.cancels) == len(set(job.vendor.cancels)) == 2 * PER_CHUNK
    await job.settle()
    shown = await job.show(done["cancellation_id"])
    assert (shown["ended_at"] is not None, shown["outcomes"]["cancelled"]) == (True, 2 * PER_CHUNK)
    requests = len(job.vendor.lists)
    await job.look()
    assert len(job.vendor.lists) == requests, "a cancellation that has ended asks nothing"


async def test_errors_of_extend_are_told_apart(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    await world.send()
    await world.project()
    done = await job.cancel(submission)
    job.vendor.fails = lambda run_id: ExtendError(403, "FORBIDDEN", "no permission", from_extend=True)
    await job.look()
    assert "no permission" in (await job.show(done["cancellation_id"]))["problem"]
    # One run is deleted at Extend, and one is refused although it is listed as PENDING.
    answers = {
        "run_batch_1_0": ExtendError(404, "NOT_FOUND", "no such run", from_extend=True),
        "run_batch_1_1": ExtendError(400, "INVALID_REQUEST", "no", from_extend=True),
    }
    job.vendor.fails = answers.get
    for _ in range(MAX_REFUSALS):
        await job.look()
    shown = await job.show(done["cancellation_id"])
    assert shown["problem"] is None
    assert shown["outcomes"] == {
        "cancelled_unsent": 0,
        "cancelled": 2,
        "finished": 0,
        "in_review": 0,
        "refused": 1,
        "gone": 1,
    }


async def test_single_inputs_are_cut_out_of_their_chunk_and_the_others_are_sent(job: Job, world: World) -> None:
    submission = await hand_in(world, 3 * PER_CHUNK)
    await world.send()
    await world.project()
    ids = ["row-2", "row-6", "row-7", *(f"row-{n}" for n in range(9, 13))]
    done = await job.cancel(submission, ids=ids)
    assert (done["scope"], done["inputs"]["not_sent"], done["inputs"]["at_extend"]) == ("inputs", 6, 1)
    assert not await world.dispatcher.send_one(), "no chunk with one of the inputs is sent before it is cut"
    await job.look()
    assert job.vendor.cancels == ["run_batch_1_1"]
    await send_all(world)
    sent = [given["metadata"]["everyrun:input"]["input"] for call in job.vendor.calls for given in call["inputs"]]
    assert sent == [f"{submission}:row-{n}" for n in (1, 2, 3, 4, 5, 8)]
    job.vendor.end(PENDING="PROCESSED")
    await job.settle()
    assert await counts(world, submission) == {"CANCELLED": 7, "PROCESSED": 5}
    assert (await job.show(done["cancellation_id"]))["ended_at"] is not None
    cancelled = {name for name, (status, _) in (await statuses(world, submission)).items() if status == "CANCELLED"}
    assert cancelled == set(ids)
    assert set((await chunks(world)).values()) == {"submitted", "cut", "cancelled"}
    lines = await world.pool.fetch("select * from everyrun.report where submission_id = $1", submission)
    assert all(line["balanced"] for line in lines)


async def test_unknown_ids_cancel_nothing(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    answer = await job.cancel(submission, status=422, ids=["row-1", "row-99"])
    assert answer["code"] == "UNKNOWN_INPUTS"
    assert "row-99" in answer["message"]
    assert await world.said() == []
    assert await world.dispatcher.send_one()


async def test_a_batch_is_cancelled_also_if_it_was_registered(job: Job, world: World) -> None:
    rows = b"".join(b'{"id": "%d", "file": {"id": "f"}, "metadata": {"n": %d}}\n' % (n, n) for n in range(3))
    for n in range(3):
        job.vendor.add(f"run_theirs_{n}", "batch_theirs", "PROCESSING", {"n": n})
    answer = await world.api.post(
        "/v1/batches",
        params={"batch_id": "batch_theirs", "workflow_id": "workflow_1"},
        content=rows,
        headers={"content-type": "application/x-ndjson"},
    )
    assert answer.status_code == 202, answer.text
    await world.announcer.announce()
    await world.project()
    # First one input, whose run is found by its metadata; then the whole batch.
    await job.cancel(answer.json()["submission_id"], ids=["1"])
    await job.look()
    assert job.vendor.cancels == ["run_theirs_1"]
    done = (await world.api.post("/v1/batches/batch_theirs/cancellations", json=WHY)).json()
    assert (done["scope"], done["batch_id"], done["inputs"]["at_extend"]) == ("batch", "batch_theirs", 3)
    await job.look()
    assert sorted(job.vendor.cancels) == ["run_theirs_0", "run_theirs_1", "run_theirs_2"]
    await job.settle()
    assert await counts(world, answer.json()["submission_id"]) == {"CANCELLED": 3}


async def test_a_paused_submission_can_be_cancelled_and_a_resume_sends_nothing_of_it(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    assert (await world.api.post(f"/v1/submissions/{submission}/pause", json=WHY)).status_code == 200
    assert not await world.dispatcher.send_one()
    await job.cancel(submission)
    resumed = (await world.api.post(f"/v1/submissions/{submission}/resume", json=WHY)).json()
    assert resumed["inputs"]["will_be_sent"] == 0
    assert not await world.dispatcher.send_one()
    await job.look()
    assert await counts(world, submission) == {"CANCELLED": PER_CHUNK}


async def test_two_workers_and_a_cancellation_at_once_neither_lose_nor_send_twice(job: Job, world: World) -> None:
    """Each input is sent in one call or cancelled unsent, whatever the order of claims, cuts and flags."""
    total = 40 * PER_CHUNK
    submission = await hand_in(world, total)
    given: Any = job.vendor
    other = wire(world.settings, world.pool, given, world.producer, INSTALLATION).dispatcher
    over = asyncio.Event()

    async def send(dispatcher: Dispatcher) -> None:
        while not over.is_set():
            await dispatcher.send_one()

    async def called(times: int) -> None:
        while len(job.vendor.calls) < times:
            await asyncio.sleep(0.005)

    async def cancel() -> None:
        await called(5)
        await job.cancel(submission, ids=[f"row-{n}" for n in range(1, total + 1, 3)])
        cuts = asyncio.create_task(job.look())
        await called(20)
        await job.cancel(submission)
        await asyncio.gather(cuts, job.look(), job.look())
        over.set()

    await asyncio.gather(send(world.dispatcher), send(other), cancel())
    sent = [given["metadata"]["everyrun:input"]["input"] for call in job.vendor.calls for given in call["inputs"]]
    assert len(sent) == len(set(sent)) < total
    await world.project()
    await job.look()
    await job.settle()
    results = await statuses(world, submission)
    assert len(results) == total
    unsent = {name for name, (_, reason) in results.items() if reason == "CANCELLED_UNSENT"}
    assert {f"{submission}:{name}" for name in unsent} == {f"{submission}:row-{n}" for n in range(1, total + 1)} - set(
        sent
    )
    assert {status for status, _ in results.values()} == {"CANCELLED"}
    lines = await world.pool.fetch("select * from everyrun.report where submission_id = $1", submission)
    assert all(line["balanced"] for line in lines)


async def test_a_restored_queue_learns_the_cancellation_from_the_log(job: Job, world: World) -> None:
    submission = await hand_in(world, 2 * PER_CHUNK)
    done = await job.cancel(submission)
    # The queue as it was before the cancellation: only the log knows it, and for the first chunk its end.
    async with world.pool.acquire() as connection:
        await job.look()
        await connection.execute(
            "update everyrun_queue.chunks set state = 'waiting', cancellation = null, reason = null"
        )
        await connection.execute("delete from everyrun_queue.cancellations")
        await connection.execute("delete from everyrun_queue.log_position")
    cluster = await _cluster(world)
    assert await catch_up(world.settings, world.pool, cluster) == 2
    assert set((await chunks(world)).values()) == {"cancelled"}
    shown = await job.show(done["cancellation_id"])
    assert (shown["by"], shown["reason"]) == ("ann (bootstrap)", "the wrong folder")


async def test_a_restored_queue_flags_chunks_whose_end_is_not_in_the_log(job: Job, world: World) -> None:
    submission = await hand_in(world, 2 * PER_CHUNK)
    await job.cancel(submission)
    await world.pool.execute("update everyrun_queue.chunks set cancellation = null")
    await world.pool.execute("delete from everyrun_queue.cancellations")
    await world.pool.execute("delete from everyrun_queue.log_position")
    await catch_up(world.settings, world.pool, await _cluster(world))
    assert not await world.dispatcher.send_one()
    await job.look()
    assert await counts(world, submission) == {"CANCELLED": 2 * PER_CHUNK}


async def test_the_list_and_the_report_show_what_is_being_cancelled(job: Job, world: World) -> None:
    submission = await hand_in(world, PER_CHUNK)
    await job.cancel(submission)
    rows: list[asyncpg.Record] = await world.pool.fetch("select * from everyrun_queue.unsent($1)", submission)
    assert [(row["status"], row["waits_for"], row["inputs"]) for row in rows] == [("WAITING", "cancelling", PER_CHUNK)]
    await job.look()
    rows = await world.pool.fetch("select * from everyrun_queue.unsent($1)", submission)
    assert [(row["waits_for"], row["in_transit"]) for row in rows] == [("in_transit", True)]
    await world.project()
    assert await world.pool.fetch("select * from everyrun_queue.unsent($1)", submission) == []
    listed = (await world.api.get(f"/v1/submissions/{submission}")).json()
    assert listed["chunks"] == {"cancelled": 1}


async def _cluster(world: World) -> str:
    return await topics.cluster_id(world.settings)
