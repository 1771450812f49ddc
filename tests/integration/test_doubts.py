"""Calls of unknown outcome, resolved by rules and by people, on a real Kafka and Postgres with a fake Extend."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from aiokafka.errors import KafkaTimeoutError
from pydantic import SecretStr

from everyrun.extend import reserved
from everyrun.extend.client import ExtendError, Page
from everyrun.log import topics
from everyrun.log.cloudevents import Record, record, timestamp
from everyrun.log.events import BatchSubmitted, DeliveryDeferred, RunObserved
from everyrun.log.producer import Producer
from everyrun.log.reading import Poll, end_offsets, read_polls
from everyrun.projection import tables
from everyrun.projection.feed import Feed
from everyrun.settings import Settings
from everyrun.store.pool import open_pool
from everyrun.submission import redaction
from everyrun.submission.app import wire
from everyrun.submission.dispatch import dispatcher, transitions
from everyrun.submission.intake import parse
from everyrun.submission.intake.accept import accept_submission
from everyrun.submission.recovery import queue_recovery
from everyrun.submission.recovery.queue_recovery import CALL_MARGIN, catch_up
from tests.integration.conftest import read_topic
from tests.integration.tables import restore_rows

INSTALLATION = "inst_test"
WHY = {"reason": "seen", "by": "ann"}


class Vendor:
    """A fake Extend with the next answers, and the batches that it accepted."""

    def __init__(self) -> None:
        self.answers: list[httpx.Response | httpx.HTTPError] = []
        self.takes = False
        self.calls: list[dict[str, Any]] = []
        self.batches: dict[str, dict[str, Any]] = {}
        self.during: Callable[[], Awaitable[None]] | None = None

    async def wait_for_turn(self, category: str) -> None:
        pass

    async def pause(self, category: str, seconds: float) -> None:
        pass

    async def create_batch(self, body: bytes) -> httpx.Response:
        self.calls.append(json.loads(body))
        if self.during is not None:
            await self.during()
        batch_id = f"batch_{len(self.calls)}"
        answer = self.answers.pop(0) if self.answers else httpx.Response(200, json={"batchId": batch_id})
        if self.takes or (isinstance(answer, httpx.Response) and answer.status_code == 200):
            self.batches[batch_id] = self.calls[-1]["inputs"][0]
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return answer

    async def list_runs(self, within: float, **query: Any) -> Page:
        batch_id = query["batchId"]
        found = [{"id": f"run of {batch_id}"}] if batch_id in self.batches else []
        return Page(found, None, datetime.now(UTC))

    async def get_workflow(self, workflow_id: str, within: float) -> bytes:
        return b"{}"

    async def get_workflow_version(self, workflow_id: str, version: str, within: float) -> bytes:
        return b"{}"

    async def get_run(self, run_id: str, within: float) -> bytes:
        batch_id = run_id.removeprefix("run of ")
        if batch_id not in self.batches:
            raise ExtendError(404, "NOT_FOUND", "no such run")
        return json.dumps(self.run(batch_id)).encode()

    def run(self, batch_id: str) -> dict[str, Any]:
        metadata = self.batches[batch_id]["metadata"]
        return {
            "object": "workflow_run",
            "id": f"run of {batch_id}",
            "status": "PROCESSING",
            "batchId": batch_id,
            "metadata": metadata,
        }


class World:
    """The wired submission service, and the projection, in this process."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, producer: Producer, tables_pool: asyncpg.Pool) -> None:
        self.vendor = Vendor()
        extend: Any = self.vendor
        self.settings, self.pool, self.producer, self.tables_pool = settings, pool, producer, tables_pool
        service = wire(settings, pool, extend, producer, INSTALLATION)
        self.recovery, self.dispatcher, self.resolver = service.recovery, service.dispatcher, service.resolver
        self.announcer = service.announcer
        self.api = httpx.AsyncClient(
            base_url="http://submission",
            headers={"authorization": "Bearer token"},
            transport=httpx.ASGITransport(service.api),
        )

    async def hand_in(self, inputs: int = 2, version: str | None = None) -> str:
        rows = b"".join(b'{"file": {"url": "https://files.example/%d.pdf?signed"}}\n' % n for n in range(inputs))

        async def parts() -> AsyncIterator[bytes]:
            yield rows

        accepted = await accept_submission(
            self.pool,
            self.settings,
            parse.read_rows(parse.NDJSON, parts()),
            workflow_id="workflow_1",
            workflow_version=version,
            priority=90,
            idempotency_key=None,
        )
        await self.announcer.announce()
        return accepted.submission_id

    async def send(self, *answers: httpx.Response | httpx.HTTPError, takes: bool = False) -> None:
        """Let the dispatcher send one chunk, to which Extend gives these answers."""
        self.vendor.answers, self.vendor.takes = list(answers), takes
        await self.dispatcher.send_one()

    async def chunk(self) -> asyncpg.Record:
        return await self.pool.fetchrow("select * from everyrun_queue.chunks")

    async def project(self) -> None:
        """Apply the whole log to the tables."""
        ends = await end_offsets(self.settings, ("batches", "runs", "deliveries"))
        applied = {
            (row["topic"], row["partition"]): row["next_offset"]
            for row in await self.pool.fetch("select * from everyrun.applied_offsets")
        }
        feed = Feed(self.settings, self.tables_pool, await topics.identity(self.settings), self.producer)
        await feed.fill(
            {place: (applied.get(place, 0), end) for place, end in ends.items() if applied.get(place, 0) < end}
        )

    async def observe(self, batch_id: str) -> None:
        """Publish a webhook of a run of the batch."""
        run = self.vendor.run(batch_id)
        event = RunObserved(source="webhook", run=msgspec.Raw(json.dumps(run).encode()))
        now = timestamp(datetime.now(UTC))
        said = record("runs", event, key=batch_id, id=f"{batch_id}/{now}", source="/test", time=now)
        await self.producer.append([said])

    async def defer(self, batch_id: str) -> None:
        """Publish a webhook of a run of the batch whose payload is behind a link."""
        run = self.vendor.run(batch_id)
        event = DeliveryDeferred("workflow_run.completed", run["id"], "https://link.example", run["metadata"])
        now = timestamp(datetime.now(UTC))
        said = record("deliveries", event, key=run["id"], id=f"{batch_id}/link", source="/test", time=now)
        await self.producer.append([said])

    async def window_passes(self, sweeps: int = 2) -> None:
        await self.pool.execute("update everyrun_queue.chunks set deadline = now() - interval '1 minute'")
        for n in range(sweeps):
            at = datetime.now(UTC) - timedelta(seconds=30 - n)
            await self.pool.execute("insert into everyrun_queue.sweeps values ('workflow_1', $1, $1)", at)

    async def said(self) -> list[str]:
        found = [event["type"] for event, _ in await read_topic(self.settings, "batches")]
        return sorted(kind for kind in found if kind != "submission-accepted")

    async def decide(self, what: str, **body: Any) -> httpx.Response:
        chunk = (await self.chunk())["chunk"]
        return await self.api.post(f"/v1/doubts/{chunk}/{what}", json={**WHY, **body})


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    settings.api_token = SecretStr("token")
    settings.doubt_resends = 1
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await open_pool(settings, name="test"))
        tables_pool = await stack.enter_async_context(
            asyncpg.create_pool(
                settings.postgres_dsn.get_secret_value(),
                min_size=1,
                init=tables.setup_connection,
                server_settings={"search_path": "everyrun"},
            )
        )
        producer = await stack.enter_async_context(Producer(settings))
        made = World(settings, pool, producer, tables_pool)
        await stack.enter_async_context(made.api)
        yield made


NO_ANSWER = httpx.ReadTimeout("no answer")


async def test_a_chunk_is_resent_only_after_the_window_and_two_later_sweeps(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER)
    chunk = await world.chunk()
    assert (chunk["state"], chunk["attempt"]) == ("in_doubt", 1)
    await world.project()
    await world.window_passes(sweeps=1)
    await world.resolver.resolve()
    doubt = (await world.api.get("/v1/doubts")).json()["doubts"][0]
    assert (doubt["state"], doubt["waits_for"].endswith("1 of 2")) == ("in_doubt", True)
    assert (doubt["can"], doubt["with_force"]) == (["adopt"], ["resend", "discard"])
    await world.window_passes()
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "waiting"
    # In doubt again after the maximum number of resends: held.
    await world.send(NO_ANSWER)
    await world.project()
    await world.window_passes()
    await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["attempt"], chunk["resends"]) == ("held", 2, 1)
    # A decision that evidence may contradict needs sweeps, even for a held chunk, and is offered only then.
    held = (await world.api.get("/v1/doubts", params={"state": "held"})).json()["doubts"][0]
    assert (held["can"], held["with_force"]) == (["adopt"], ["resend", "discard"])
    assert (await world.decide("resend")).json()["code"] == "WINDOW_OPEN"
    await world.window_passes()
    held = (await world.api.get("/v1/doubts", params={"state": "held"})).json()["doubts"][0]
    assert (held["can"], held["with_force"]) == (["adopt", "resend", "discard"], [])
    assert (await world.decide("resend")).status_code == 200


async def test_a_chunk_is_not_resent_while_the_tables_lag_or_a_run_names_it(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER, takes=True)
    await world.project()
    await world.window_passes()
    await world.observe("batch_1")
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "in_doubt", "the log has more than the tables"
    await world.project()
    await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["batch_id"]) == ("submitted", "batch_1")
    assert await world.said() == ["batch-in-doubt", "batch-requested", "batch-submitted"]


async def test_a_chunk_waits_for_a_webhook_behind_a_link(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER, takes=True)
    await world.project()
    await world.window_passes()
    await world.defer("batch_1")
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "in_doubt", "the log has more than the tables"
    await world.project()
    await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["reason"]) == ("held", "run of batch_1 names the chunk, but no batch")


@pytest.mark.parametrize("days", [-1, 1])
async def test_the_window_is_measured_by_the_clock_of_the_database(
    world: World, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=days)

    for module in (dispatcher, transitions, queue_recovery):
        monkeypatch.setattr(module, "datetime", Wrong)
    left = "select extract(epoch from deadline - now())::float8 from everyrun_queue.chunks"
    window = world.settings.doubt_window
    await world.hand_in()

    async def deadline_of_the_call() -> None:
        settings = world.settings
        most = settings.dispatch_deadline + settings.call_timeout + CALL_MARGIN
        assert most - 20 < await world.pool.fetchval(left) <= most

    world.vendor.during = deadline_of_the_call
    await world.send(NO_ANSWER)
    assert window - 20 < await world.pool.fetchval(left) <= window
    await world.pool.execute("update everyrun_queue.chunks set state = 'waiting', attempt = 0, deadline = null")
    await world.recovery.catch_up()
    assert (await world.chunk())["state"] == "in_doubt"
    assert window - 20 < await world.pool.fetchval(left) <= window


async def test_evidence_that_matches_no_attempt_is_retried_only_after_the_chunk_changed(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER, takes=True)
    await world.observe("batch_1")
    await world.project()
    # The queue has lost the attempt, like a restored queue before it is caught up with the log.
    await world.pool.execute("update everyrun_queue.chunks set state = 'waiting', attempt = 0")
    tried = []
    apply = world.resolver._transitions.apply

    async def counted(chunk: str, trigger: Any) -> Any:
        tried.append(trigger)
        return await apply(chunk, trigger)

    world.resolver._transitions.apply = counted  # type: ignore[method-assign]
    for _ in range(3):
        await world.resolver.adopt_evidence()
    assert len(tried) == 1
    await world.pool.execute("update everyrun_queue.chunks set state = 'in_doubt', attempt = 1, deadline = now()")
    await world.resolver.adopt_evidence()
    chunk = await world.chunk()
    assert (len(tried), chunk["state"], chunk["batch_id"]) == (2, "submitted", "batch_1")


async def test_evidence_is_found_without_reading_foreign_runs(world: World) -> None:
    await world.pool.execute(
        """
        insert into everyrun.unmatched_runs
            (run_id, batch_id, status, reason, first_seen, installation, chunk, attempt, run, source, observed_at,
             version, fingerprints, bindings)
        select 'run_' || n, 'batch_' || n % 500, 'PROCESSED', 'batch_unknown', now(),
               case when n % 40000 = 0 then 'inst_test' end, 'chunk_' || n, 1, '{}', 'list', now(), '', '{}', '[]'
        from generate_series(1, 200000) n
        """
    )
    await world.pool.execute("analyze everyrun.unmatched_runs")
    evidence = transitions._sql["evidence"]
    async with world.pool.acquire() as connection:
        assert len(await connection.fetch(evidence, "inst_test")) == 5
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"set plan_cache_mode = {mode}")
            prepared = await connection.prepare(evidence)
            plan = "\n".join(row[0] for row in await connection.fetch("select 1 where false")) or json.dumps(
                await prepared.explain("inst_test")
            )
            assert "unmatched_runs_evidence" in plan, plan
            assert "Seq Scan on unmatched_runs" not in plan


async def test_a_person_adopts_a_batch_that_a_run_proves(world: World) -> None:
    submission = await world.hand_in()
    await world.send(httpx.Response(200, json={}))
    chunk = await world.chunk()
    assert chunk["state"] == "held"
    answer = await world.decide("adopt", batch_id="batch_9")
    assert (answer.status_code, answer.json()["code"]) == (409, "NO_RUNS")
    foreign = reserved.Reserved("inst_other", "s:1", chunk["chunk"], 1, 1)
    for name, metadata, code in (
        ("batch_7", {"a": 1}, "NOT_OURS"),
        ("batch_8", reserved.mark({}, foreign), "OTHER_CHUNK"),
    ):
        world.vendor.batches[name] = {"metadata": metadata}
        answer = await world.decide("adopt", batch_id=name)
        assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert (await world.chunk())["state"] == "held"
    answer = await world.decide("adopt", batch_id="batch_1")
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "submitted"
    await world.project()
    shown = (await world.api.get(f"/v1/doubts/{chunk['chunk']}")).json()
    assert [(d["kind"], d["decided_by"], d["reason"]) for d in shown["decisions"]] == [
        ("doubt-adopted", "ann (bootstrap)", "seen")
    ]
    rows = await world.pool.fetch("select status, batch_id from everyrun.results where submission_id = $1", submission)
    assert [tuple(row) for row in rows] == [("SUBMITTED", "batch_1")] * 2
    answer = await world.decide("adopt", batch_id="batch_1")
    assert (answer.status_code, answer.json()["code"]) == (409, "BATCH_KNOWN")


async def test_a_discarded_chunk_is_refused_and_its_later_run_is_shown(world: World) -> None:
    submission = await world.hand_in()
    await world.send(NO_ANSWER, takes=True)
    answer = await world.decide("discard")
    assert (answer.status_code, answer.json()["code"]) == (409, "WINDOW_OPEN")
    answer = await world.decide("discard", force=True)
    assert (answer.status_code, answer.json()["state"]) == (200, "refused")
    await world.project()
    query = "select status, failure_reason, failure_message from everyrun.results where submission_id = $1"
    rows = [tuple(row) for row in await world.pool.fetch(query, submission)]
    assert rows == [("REFUSED", "DISCARDED", "seen (ann (bootstrap))")] * 2
    assert (await world.decide("discard", force=True)).json()["code"] == "NOT_IN_DOUBT"
    await world.observe("batch_1")
    await world.project()
    await world.resolver.resolve()
    await world.project()
    rows = [row["status"] for row in await world.pool.fetch(query, submission)]
    assert sorted(rows) == ["PROCESSING", "SUBMITTED"]


async def test_a_person_resends_a_chunk(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER)
    assert (await world.decide("resend")).json()["code"] == "WINDOW_OPEN"
    assert (await world.decide("resend", force=True)).json()["state"] == "waiting"
    await world.send()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["attempt"], chunk["batch_id"]) == ("submitted", 2, "batch_2")


async def test_no_call_after_an_earlier_attempt_is_known_to_be_accepted(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER, takes=True)
    await world.decide("resend", force=True)
    await world.observe("batch_1")
    await world.project()

    class Meanwhile:
        async def append(self, records: Iterable[Record]) -> None:
            await world.producer.append(records)
            await world.resolver.adopt_evidence()

    world.dispatcher._log = Meanwhile()
    await world.send()
    assert len(world.vendor.calls) == 1
    chunk = await world.chunk()
    assert (chunk["state"], chunk["attempt"], chunk["batch_id"]) == ("submitted", 2, "batch_1")
    assert "batch-returned" in await world.said()


async def test_a_lost_worker_is_noticed_after_an_earlier_attempt_was_proved(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER, takes=True)
    await world.decide("resend", force=True)
    await world.observe("batch_1")
    await world.project()

    async def killed() -> None:
        await world.resolver.adopt_evidence()
        raise RuntimeError("killed")

    world.vendor.during = killed
    with pytest.raises(RuntimeError, match="killed"):
        await world.send()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["attempt"], chunk["batch_id"]) == ("sending", 2, "batch_1")
    await world.pool.execute("update everyrun_queue.chunks set deadline = deadline - interval '1 hour'")
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "submitted"


async def test_a_chunk_refused_after_a_doubt_is_held(world: World) -> None:
    await world.hand_in()
    await world.send(NO_ANSWER)
    await world.decide("resend", force=True)
    await world.send(httpx.Response(400, json={"code": "INVALID", "message": "no", "retryable": False}))
    chunk = await world.chunk()
    assert (chunk["state"], "earlier attempt" in chunk["reason"]) == ("held", True)


async def test_unknown_chunks_and_missing_reasons_are_errors(world: World) -> None:
    await world.hand_in()
    assert (await world.api.get("/v1/doubts")).json() == {"doubts": [], "next_cursor": None}
    assert (await world.api.get("/v1/doubts/nothing")).status_code == 404
    assert (await world.api.post("/v1/doubts/nothing/resend", json=WHY)).status_code == 404
    assert (await world.decide("resend", reason="")).status_code == 422
    assert (await world.decide("resend")).json()["code"] == "NOT_IN_DOUBT"


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_workflow_that_extend_blocks_is_paused_until_a_person_resumes_it(world: World, status: int) -> None:
    await world.hand_in()
    await world.send(httpx.Response(status, json={"code": "NO", "message": "credits", "retryable": False}))
    paused = (await world.api.get("/v1/workflows/paused")).json()["workflows"]
    assert [(p["workflow_id"], p["by"]) for p in paused] == [("workflow_1", None)]
    assert f"Extend answered {status} NO: credits" in paused[0]["reason"]
    assert "everyrun workflow resume workflow_1" in paused[0]["reason"]
    await world.pool.execute("update everyrun_queue.chunks set not_before = '-infinity'")
    await world.send()
    assert len(world.vendor.calls) == 1
    resumed = (await world.api.post("/v1/workflows/workflow_1/resume", json=WHY)).json()
    assert (resumed["workflow_id"], resumed["paused"], resumed["changed"]) == ("workflow_1", False, True)
    inputs = await world.pool.fetchval("select count(*) from everyrun_queue.inputs")
    assert (resumed["inputs"]["will_be_sent"], resumed["inputs"]["submitted"]) == (inputs, 0)
    assert not (await world.api.post("/v1/workflows/workflow_1/resume", json=WHY)).json()["changed"]
    assert (await world.api.post("/v1/workflows/nothing/resume", json=WHY)).status_code == 404
    await world.send()
    assert (await world.chunk())["state"] == "submitted"
    said = await world.said()
    assert (said.count("workflow-paused"), said.count("workflow-resumed")) == (1, 1)


async def test_an_unknown_version_pauses_only_its_submission(world: World) -> None:
    wrong = await world.hand_in(version="99")
    message = "version 99 of workflow workflow_1 not found"
    await world.send(httpx.Response(404, json={"code": "NOT_FOUND", "message": message, "retryable": False}))
    assert (await world.api.get("/v1/workflows/paused")).json()["workflows"] == []
    shown = (await world.api.get(f"/v1/submissions/{wrong}")).json()
    assert f"404 NOT_FOUND: {message}" in shown["paused"]
    assert f"everyrun submission resume {wrong}" in shown["paused"]
    await world.pool.execute("update everyrun_queue.chunks set not_before = '-infinity'")
    right = await world.hand_in()
    await world.send()
    assert (await world.api.get(f"/v1/submissions/{right}")).json()["chunks"] == {"submitted": 1}
    assert (await world.api.get(f"/v1/submissions/{wrong}")).json()["chunks"] == {"waiting": 1}
    assert "submission-paused" in await world.said()


async def test_a_paused_submission_waits(world: World) -> None:
    submission = await world.hand_in()
    paused = (await world.api.post(f"/v1/submissions/{submission}/pause", json=WHY)).json()
    assert (paused["changed"], paused["inputs"]["will_be_sent"]) == (True, 0)
    assert paused["inputs"]["waiting"] == paused["inputs"]["waits_for"]["submission_paused"] > 0
    await world.send()
    assert (await world.chunk())["state"] == "waiting"
    shown = (await world.api.get(f"/v1/submissions/{submission}")).json()
    assert shown["paused"] == "seen"
    await world.api.post(f"/v1/submissions/{submission}/resume", json=WHY)
    await world.send()
    assert (await world.chunk())["state"] == "submitted"
    again = (await world.api.post(f"/v1/submissions/{submission}/pause", json=WHY)).json()
    assert (again["inputs"]["waiting"], again["inputs"]["submitted"]) == (0, paused["inputs"]["waiting"])


async def test_an_older_queue_under_a_running_service_sends_nothing_twice(world: World) -> None:
    await world.hand_in()
    await world.recovery.ensure_caught_up()
    tables_kept = ("submissions", "inputs", "chunks", "log_position", "paused")
    before = {name: await world.pool.fetch(f"select * from everyrun_queue.{name}") for name in tables_kept}
    await world.send(NO_ANSWER, takes=True)
    await world.decide("resend", force=True)
    await world.send(NO_ANSWER)
    assert (await world.chunk())["attempt"] == 2
    # Restore the queue of before, in the same database, with the same connections.
    async with world.pool.acquire() as connection, connection.transaction():
        await connection.execute(f"truncate {', '.join('everyrun_queue.' + name for name in tables_kept)} cascade")
        for name, rows in before.items():
            await restore_rows(connection, name, rows)
    assert (await world.chunk())["state"] == "waiting"
    await world.send()
    chunk = await world.chunk()
    assert len(world.vendor.calls) == 2, "it was sent again"
    assert (chunk["state"], chunk["attempt"], chunk["resends"]) == ("in_doubt", 2, 1)


async def test_a_lost_queue_is_restored_without_holding_all_inputs_in_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings.chunk_max_inputs = 1
    await world.hand_in(6)
    for _ in range(5):
        await world.send()
    await world.pool.execute(
        "update everyrun_queue.chunks set state = 'waiting', attempt = 0, batch_id = null, reason = null"
    )
    await world.pool.execute("truncate everyrun_queue.log_position")
    alive: list[int] = []

    async def one_by_one(*where: Any) -> AsyncIterator[Poll]:
        async for poll in read_polls(*where):
            for one in poll.records:
                yield Poll(poll.topic, poll.partition, [one])
                alive.append(sum(isinstance(thing, BatchSubmitted) for thing in gc.get_objects()))

    monkeypatch.setattr(queue_recovery, "read_polls", one_by_one)
    before = sum(isinstance(thing, BatchSubmitted) for thing in gc.get_objects())
    assert await catch_up(world.settings, world.pool, await topics.cluster_id(world.settings)) == 5
    assert max(alive) <= before + 1
    rows = await world.pool.fetch("select state, attempt, batch_id from everyrun_queue.chunks order by chunk")
    assert [tuple(row) for row in rows] == [("submitted", 1, f"batch_{n}") for n in range(1, 6)] + [
        ("waiting", 0, None)
    ]


async def test_the_log_of_another_kafka_is_refused(world: World) -> None:
    await world.hand_in()
    await catch_up(world.settings, world.pool, "cluster_a")
    with pytest.raises(Exception, match="cluster_a"):
        await catch_up(world.settings, world.pool, "cluster_b")


class Refuses:
    """A log that refuses the records of one key."""

    def __init__(self, log: Producer, key: str) -> None:
        self.log, self.key = log, key.encode()

    async def append(self, records: Iterable[Record]) -> None:
        given = list(records)
        if any(one.key == self.key for one in given):
            raise KafkaTimeoutError("its partition has no leader")
        await self.log.append(given)


async def test_a_chunk_that_kafka_does_not_accept_delays_no_other(world: World) -> None:
    world.settings.chunk_max_inputs = 1
    await world.hand_in(2)
    first, second = [
        row["chunk"] for row in await world.pool.fetch("select * from everyrun_queue.chunks order by chunk")
    ]
    world.dispatcher._log = Refuses(world.producer, first)

    async def state(chunk: str) -> str:
        return str(await world.pool.fetchval("select state from everyrun_queue.chunks where chunk = $1", chunk))

    for attempt in range(1, 4):
        with pytest.raises(KafkaTimeoutError):
            await world.send()
        chunks = {row["chunk"]: row for row in await world.pool.fetch("select *, now() from everyrun_queue.chunks")}
        assert (chunks[first]["state"], chunks[first]["attempt"]) == ("waiting", attempt)
        wait = (chunks[first]["not_before"] - chunks[first]["now"]).total_seconds()
        assert 2**attempt - 1 < wait <= 2**attempt, "it waits longer each time"
        await world.send()
        assert (await state(second), len(world.vendor.calls)) == ("submitted", 1)
        await world.pool.execute("update everyrun_queue.chunks set not_before = '-infinity'")
    world.dispatcher._log = world.producer
    await world.send()
    assert await state(first) == "submitted"


async def test_a_submission_that_kafka_does_not_accept_delays_no_other(world: World) -> None:
    first = await world.hand_in()
    await world.pool.execute("update everyrun_queue.submissions set announced_at = null")
    world.announcer._log = Refuses(world.producer, first)
    await world.hand_in()
    unannounced = "select submission_id from everyrun_queue.submissions where announced_at is null"
    assert [row[0] for row in await world.pool.fetch(unannounced)] == [first]
    world.announcer._log = world.producer
    await world.announcer.announce()
    assert await world.pool.fetch(unannounced) == []


async def test_files_are_redacted_in_slices_and_a_failure_delays_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_SLICE", 2)
    world.settings.secrets_kept = 0
    first, second, not_sent = [await world.hand_in(5) for _ in range(3)]
    await world.send()
    await world.send()
    await world.project()
    await world.pool.execute(
        "update everyrun.batches set state = 'SETTLED', settled_at = now() - interval '1 second' where batch_id <> ''"
    )
    await world.pool.execute(
        f"""
        create function no() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
        create trigger no before update on everyrun_queue.inputs for each row
        when (old.submission_id = '{first}' and old.position = 4) execute function no();
        """
    )

    async def kept() -> dict[str, list[int]]:
        rows = await world.pool.fetch(
            "select submission_id, position from everyrun_queue.inputs where file like '%signed%' order by position"
        )
        return {each: [row[1] for row in rows if row[0] == each] for each in (first, second, not_sent)}

    async def redacted() -> set[str]:
        rows = await world.pool.fetch("select submission_id from everyrun_queue.submissions where redact_after is null")
        return {row[0] for row in rows}

    await redaction.redact_due(world.pool, world.producer, world.settings)
    assert await kept() == {first: [3, 4, 5], second: [], not_sent: [1, 2, 3, 4, 5]}
    assert await redacted() == {second}
    await world.pool.execute("drop trigger no on everyrun_queue.inputs")
    await world.pool.execute("update everyrun_queue.submissions set redact_after = now() where redact_after > now()")
    await redaction.redact_due(world.pool, world.producer, world.settings)
    assert await kept() == {first: [], second: [], not_sent: [1, 2, 3, 4, 5]}
    assert await redacted() == {first, second}


async def test_two_workers_send_a_chunk_once(world: World) -> None:
    await world.hand_in()
    await asyncio.gather(*(world.dispatcher.send_one() for _ in range(4)))
    assert len(world.vendor.calls) == 1
