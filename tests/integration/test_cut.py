"""Refused chunks, and answers that are not Extend's, on a real Kafka and Postgres with a fake Extend."""

# ruff: noqa: F811
from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from everyrun.log import topics
from everyrun.submission.dispatch import transitions
from everyrun.submission.dispatch.dispatcher import Dispatcher
from everyrun.submission.dispatch.object_links import ObjectLinks
from everyrun.submission.intake import parse
from everyrun.submission.intake.accept import accept_submission
from everyrun.submission.recovery.queue_recovery import catch_up
from tests.integration.conftest import read_topic
from tests.integration.tables import restore_rows
from tests.integration.test_doubts import INSTALLATION, NO_ANSWER, WHY, Vendor, World, world  # noqa: F401

BAD = "file_nope"


def error(status: int, message: str, code: str = "INVALID_REQUEST") -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": message, "retryable": False})


class Strict(Vendor):
    """Refuses a batch for one bad file, like Extend. ``tells``: it names the input; ``answer``: given instead."""

    def __init__(self, *, tells: bool = False) -> None:
        super().__init__()
        self.tells = tells
        self.pauses: list[float] = []

    async def pause(self, category: str, seconds: float) -> None:
        self.pauses.append(seconds)

    async def create_batch(self, body: bytes) -> httpx.Response:
        if not self.answers:
            files = [given["file"].get("id") for given in json.loads(body)["inputs"]]
            if BAD in files:
                where = f"inputs[{files.index(BAD)}].file.id: there is no file" if self.tells else "an input is wrong"
                self.answers = [error(400, where)]
        return await super().create_batch(body)


def strict(world: World, **more: Any) -> Strict:
    """Replace the world's Extend with a strict one."""
    vendor = Strict(**more)
    world.vendor = vendor
    extend: Any = vendor
    world.dispatcher = Dispatcher(
        world.settings,
        world.pool,
        extend,
        world.producer,
        INSTALLATION,
        world.recovery,
        world.resolver._transitions,
        ObjectLinks(3600, 15),
    )
    return vendor


async def hand_in(world: World, count: int, *bad: int) -> str:
    """Submit inputs, of which those at the positions ``bad`` have a file that Extend does not know."""
    rows = [{"file": {"id": BAD if n in bad else f"file_{n}"}, "id": f"row-{n}"} for n in range(1, count + 1)]

    async def parts() -> AsyncIterator[bytes]:
        yield b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    accepted = await accept_submission(
        world.pool,
        world.settings,
        parse.read_rows(parse.NDJSON, parts()),
        workflow_id="workflow_1",
        workflow_version=None,
        priority=90,
        idempotency_key=None,
    )
    await world.announcer.announce()
    return accepted.submission_id


async def send_all(world: World) -> None:
    """Send until no chunk waits."""
    while await world.dispatcher.send_one():
        pass


async def counts(world: World, submission: str) -> dict[str, int]:
    """Return the inputs by status, from the tables."""
    await world.project()
    query = "select status, sum(inputs)::int from everyrun.submission_counts where submission_id = $1 group by 1"
    return dict(await world.pool.fetch(query, submission))


async def chunks(world: World) -> dict[str, str]:
    return dict(await world.pool.fetch("select chunk, state from everyrun_queue.chunks order by chunk"))


async def soon(world: World) -> None:
    """Let every waiting chunk be sent now."""
    await world.pool.execute("update everyrun_queue.chunks set not_before = '-infinity'")


@pytest.mark.parametrize("tells", [True, False])
async def test_one_bad_input_of_a_thousand_is_refused_alone(world: World, tells: bool) -> None:
    vendor = strict(world, tells=tells)
    submission = await hand_in(world, 1000, 500)
    await send_all(world)
    assert await counts(world, submission) == {"SUBMITTED": 999, "REFUSED": 1}
    refused = await world.pool.fetch("select * from everyrun.results where status = 'REFUSED'")
    assert [row["external_id"] for row in refused] == ["row-500"]
    said = "inputs[0].file.id: there is no file" if tells else "an input is wrong"
    assert (refused[0]["failure_reason"], refused[0]["failure_message"]) == ("INVALID_REQUEST", said)
    assert len(vendor.calls) - 1 <= 2 * math.log2(1000)
    taken = [given for call in vendor.calls for given in call["inputs"] if BAD not in str(call)]
    assert len(taken) == len({given["file"]["id"] for given in taken}) == 999, "each of the others was sent once"
    lines = await world.pool.fetch("select * from everyrun.report where submission_id = $1", submission)
    assert all(line["balanced"] for line in lines)
    assert "CUT" in {line["state"] for line in lines}
    assert set((await chunks(world)).values()) == {"cut", "submitted", "refused"}


async def test_the_counts_add_up_while_the_parts_wait(world: World) -> None:
    strict(world)
    first = await hand_in(world, 8, 3)
    second = await hand_in(world, 2)
    await world.send()
    assert await counts(world, first) == {"WAITING": 8}
    await world.send()
    assert await counts(world, first) == {"WAITING": 8}
    await world.send()
    assert await counts(world, first) == {"WAITING": 6, "SUBMITTED": 2}
    assert await counts(world, second) == {"WAITING": 2}, "the parts go in the place of their chunk"
    await send_all(world)
    assert await counts(world, first) == {"SUBMITTED": 7, "REFUSED": 1}
    assert await counts(world, second) == {"SUBMITTED": 2}
    cut = [event for event, _ in await read_topic(world.settings, "batches") if event["type"] == "batch-cut"]
    for event in cut:
        places = [n for part in event["parts"] for n in range(part["first_position"], part["last_position"] + 1)]
        assert [f"{first}:row-{n}" for n in places] == event["input_ids"]


async def test_if_every_input_is_bad_each_takes_less_than_two_calls(world: World) -> None:
    vendor = strict(world)
    submission = await hand_in(world, 20, *range(1, 21))
    await send_all(world)
    assert await counts(world, submission) == {"REFUSED": 20}
    assert len(vendor.calls) < 40


async def test_a_cut_that_was_published_but_not_stored_is_restored_from_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = strict(world)
    submission = await hand_in(world, 4, 1)

    async def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(transitions, "insert_parts", killed)
    with pytest.raises(RuntimeError, match="killed"):
        await world.send()
    monkeypatch.undo()
    assert list((await chunks(world)).values()) == ["sending"], "nothing was kept"
    await world.pool.execute("update everyrun_queue.chunks set deadline = now() - interval '1 hour'")
    await world.resolver.resolve()
    assert list((await chunks(world)).values()) == ["cut", "waiting", "waiting"]
    await send_all(world)
    assert await counts(world, submission) == {"SUBMITTED": 3, "REFUSED": 1}
    assert len(vendor.calls) == 5


async def test_a_restored_queue_learns_of_the_cut_from_the_log(world: World) -> None:
    vendor = strict(world)
    submission = await hand_in(world, 8, 8)
    await world.recovery.ensure_caught_up()
    kept = await world.pool.fetch("select * from everyrun_queue.chunks")
    positions = await world.pool.fetch("select * from everyrun_queue.log_position")
    for _ in range(3):
        await world.send()
    before, calls = await chunks(world), len(vendor.calls)
    assert list(before.values()) == ["cut", "submitted", "cut", "waiting", "waiting"]
    async with world.pool.acquire() as connection, connection.transaction():
        await connection.execute("truncate everyrun_queue.chunks, everyrun_queue.log_position")
        for name, rows in (("chunks", kept), ("log_position", positions)):
            await restore_rows(connection, name, rows)
    await catch_up(world.settings, world.pool, await topics.cluster_id(world.settings))
    assert await chunks(world) == before
    await send_all(world)
    assert await counts(world, submission) == {"SUBMITTED": 7, "REFUSED": 1}
    sent = [given["file"]["id"] for call in vendor.calls for given in call["inputs"] if BAD not in str(call)]
    assert sorted(sent) == sorted(set(sent)), "nothing was sent twice"
    assert len(vendor.calls) > calls


async def test_evidence_for_a_cut_chunk_is_published(world: World) -> None:
    """Extend answers that it made nothing, but a run of the chunk comes."""
    vendor = strict(world)
    submission = await hand_in(world, 2, 1)
    await world.send()
    vendor.batches["batch_1"] = vendor.calls[0]["inputs"][1]
    await send_all(world)
    await world.observe("batch_1")
    await world.project()
    await world.resolver.resolve()
    parent = f"{submission}.c00001"
    assert (await chunks(world))[parent] == "cut"
    assert sum((await counts(world, submission)).values()) == 2
    attempts = await world.pool.fetch("select batch_id, state from everyrun.batches where chunk = $1", parent)
    assert [tuple(row) for row in attempts] == [("batch_1", "SUBMITTED")]
    for _ in range(2):
        await world.resolver.resolve()
    assert (await world.said()).count("batch-submitted") == 2, "it is said once"


HTML = "<html><body>nginx</body></html>"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, html=HTML),
        httpx.Response(400, html=HTML),
        httpx.Response(403, html=HTML),
        httpx.Response(401, content=b""),
        httpx.Response(403, json={"message": "Forbidden"}),
        httpx.ConnectError("no route"),
    ],
    ids=lambda answer: getattr(answer, "status_code", "unreachable"),
)
async def test_after_an_outage_of_hours_every_input_is_sent_with_few_calls(world: World, answer: Any) -> None:
    vendor = strict(world)
    submission = await hand_in(world, 3)
    waits = []
    for _ in range(14):
        await soon(world)
        await world.send(answer)
        query = (
            "select extract(epoch from not_before - now())::float8 from everyrun_queue.chunks where state = 'waiting'"
        )
        waits.append(await world.pool.fetchval(query))
    assert all(a < b or b > 290 for a, b in pairwise(waits)), waits
    assert 290 < waits[-1] <= 300
    assert vendor.pauses == sorted(vendor.pauses)
    assert vendor.pauses[-1] == 60, "while Extend is not heard, calls are few"
    assert await world.pool.fetchval("select count(*) from everyrun_queue.paused") == 0
    assert await counts(world, submission) == {"WAITING": 3}
    await soon(world)
    await world.send()
    assert await counts(world, submission) == {"SUBMITTED": 3}


@pytest.mark.parametrize(
    "answer",
    [
        error(404, "workflow workflow_1 not found", "NOT_FOUND"),
        error(404, "not found", "NOT_FOUND"),
        error(400, "The workflow has no deployed version"),
        error(410, "gone", "ENDPOINT_REMOVED"),
    ],
    ids=lambda answer: answer.json()["message"],
)
async def test_an_error_about_the_workflow_pauses_it_and_refuses_nothing(world: World, answer: httpx.Response) -> None:
    vendor = strict(world)
    submission = await hand_in(world, 5)
    await world.send(answer)
    await soon(world)
    await send_all(world)
    assert len(vendor.calls) == 1
    assert await counts(world, submission) == {"WAITING": 5}
    paused = (await world.api.get("/v1/workflows/paused")).json()["workflows"]
    assert answer.json()["message"] in paused[0]["reason"]
    assert "everyrun workflow resume workflow_1" in paused[0]["reason"]
    assert (await world.api.post("/v1/workflows/workflow_1/resume", json=WHY)).status_code == 200
    await send_all(world)
    assert await counts(world, submission) == {"SUBMITTED": 5}


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_a_retryable_error_is_retried(world: World, status: int) -> None:
    strict(world)
    submission = await hand_in(world, 2)
    body = {"code": "BUSY", "message": "not now", "retryable": True}
    await world.send(httpx.Response(status, json=body))
    assert await counts(world, submission) == {"WAITING": 2}
    assert await world.pool.fetchval("select count(*) from everyrun_queue.paused") == 0
    await soon(world)
    await world.send()
    assert await counts(world, submission) == {"SUBMITTED": 2}


@pytest.mark.parametrize("header", ["nan", "inf", "1e300", "315360000", "-1", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_wait_that_extend_asks_for_is_limited_to_an_hour(world: World, header: str) -> None:
    vendor = strict(world)
    await hand_in(world, 2)
    await world.send(httpx.Response(429, headers={"retry-after": header}))
    chunk = await world.chunk()
    query = "select extract(epoch from not_before - now())::float8 from everyrun_queue.chunks"
    assert chunk["state"] == "waiting"
    assert -5 < await world.pool.fetchval(query) <= 3600
    assert all(0 <= seconds <= 3600 for seconds in vendor.pauses)


@pytest.mark.parametrize("status", [400, 402, 429, 502])
@pytest.mark.parametrize("escape", ["\\u0000", "\\ud800"])
async def test_a_text_that_cannot_be_stored_is_cleaned(world: World, status: int, escape: str) -> None:
    strict(world)
    submission = await hand_in(world, 1)
    body = '{"code":"A%s","message":"b%s","retryable":false}'.replace("%s", escape)
    await world.send(httpx.Response(status, content=body))
    chunk = await world.chunk()
    expected = {400: ("refused", "REFUSED"), 402: ("waiting", "WAITING"), 429: ("waiting", "WAITING")}
    state, row = expected.get(status, ("in_doubt", "IN_DOUBT"))
    assert (chunk["state"], "A\ufffd: b\ufffd" in chunk["reason"]) == (state, True)
    assert await counts(world, submission) == {row: 1}
    assert await world.pool.fetchval("select count(*) from everyrun.quarantine") == 0


# --- attempts that were claimed and never announced


class DiesError(Exception):
    """Raised to end the worker."""


class DyingLog:
    """A log that ends its worker before or after it has the record."""

    def __init__(self, world: World, *, has_it: bool) -> None:
        self.world, self.has_it = world, has_it

    async def append(self, records: Any) -> None:
        if self.has_it:
            await self.world.producer.append(records)
        raise DiesError


async def time_to_begin_is_over(world: World) -> None:
    """Let the time to begin the call pass, but not the duration of the call."""
    most = world.settings.call_timeout
    await world.pool.execute("update everyrun_queue.chunks set deadline = now() + make_interval(secs => $1)", most)


async def test_an_unannounced_attempt_is_retried_without_a_doubt(world: World) -> None:
    submission = await world.hand_in()
    world.dispatcher._log = DyingLog(world, has_it=False)  # type: ignore[assignment]
    with pytest.raises(DiesError):
        await world.send()
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "sending", "its worker may still be at work"
    await time_to_begin_is_over(world)
    await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["attempt"], chunk["resends"], chunk["owner"]) == ("waiting", 1, 0, None)
    assert await world.said() == []
    world.dispatcher._log = world.producer
    await world.send()
    assert len(world.vendor.calls) == 1
    assert await counts(world, submission) == {"SUBMITTED": 2}


@pytest.mark.parametrize("read_before", [False, True])
async def test_an_announced_attempt_is_in_doubt_after_the_duration_of_a_call(world: World, read_before: bool) -> None:
    await world.hand_in()
    world.dispatcher._log = DyingLog(world, has_it=True)  # type: ignore[assignment]
    with pytest.raises(DiesError):
        await world.send()
    if read_before:
        # The position of the queue after it has read the log.
        await world.recovery.catch_up()
    await time_to_begin_is_over(world)
    for _ in range(3):
        await world.resolver.resolve()
    chunk = await world.chunk()
    assert (chunk["state"], chunk["announced"]) == ("sending", 1), "the call may be under way"
    await world.pool.execute("update everyrun_queue.chunks set deadline = now()")
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "in_doubt"


async def test_a_worker_whose_claim_was_revoked_does_not_call(world: World) -> None:
    await world.hand_in()

    class Slow:
        async def append(self, records: Any) -> None:
            await time_to_begin_is_over(world)
            await world.resolver.resolve()
            assert (await world.chunk())["state"] == "waiting"
            await world.producer.append(records)

    world.dispatcher._log = Slow()  # type: ignore[assignment]
    await world.send()
    assert world.vendor.calls == []
    assert (await world.chunk())["state"] == "waiting"
    world.dispatcher._log = world.producer
    await world.send()
    assert len(world.vendor.calls) == 1
    assert (await world.chunk())["state"] == "submitted"


async def test_the_resolver_waits_for_a_worker_between_claim_and_call(world: World) -> None:
    await world.hand_in()

    async def meanwhile() -> None:
        await time_to_begin_is_over(world)
        await world.resolver.resolve()
        chunk = await world.chunk()
        assert (chunk["state"], chunk["announced"]) == ("sending", 1)

    world.vendor.during = meanwhile
    await world.send()
    assert len(world.vendor.calls) == 1
    assert (await world.chunk())["state"] == "submitted"


async def test_a_worker_that_announces_late_returns_the_attempt(world: World) -> None:
    await world.hand_in()

    class Late:
        async def append(self, records: Any) -> None:
            await world.producer.append(records)
            await time_to_begin_is_over(world)
            await world.resolver.resolve()

    world.dispatcher._log = Late()  # type: ignore[assignment]
    await world.send()
    chunk = await world.chunk()
    assert (world.vendor.calls, chunk["state"], chunk["resends"]) == ([], "waiting", 0)
    assert await world.said() == ["batch-requested", "batch-returned"]


async def test_a_call_without_an_answer_is_in_doubt(world: World) -> None:
    await hand_in(world, 3)
    await world.send(NO_ANSWER)
    await time_to_begin_is_over(world)
    await world.resolver.resolve()
    assert (await world.chunk())["state"] == "in_doubt"


async def test_a_refused_chunk_after_a_doubt_is_held_and_not_cut(world: World) -> None:
    vendor = strict(world)
    await hand_in(world, 4, 1)
    await world.send(NO_ANSWER)
    assert (await world.decide("resend", force=True)).status_code == 200
    await world.send()
    assert (len(vendor.calls), list((await chunks(world)).values())) == (2, ["held"])


async def test_the_tables_do_not_depend_on_the_order_of_events(world: World, settings: Any) -> None:
    """The events of a chunk and of its parts may be in different partitions, which are applied in any order."""
    strict(world, tells=True)
    submission = await hand_in(world, 9, 2, 7)
    await send_all(world)
    await world.project()
    names = ("batches", "results", "submissions")
    before = {name: await world.pool.fetch(f"select * from everyrun.{name} order by 1, 2") for name in names}
    for name in (*names, "applied_offsets", "decisions"):
        await world.pool.execute(f"truncate everyrun.{name}")
    for partition in reversed(range(8)):
        await _fill(world, partition)
    assert {name: await world.pool.fetch(f"select * from everyrun.{name} order by 1, 2") for name in names} == before
    assert await counts(world, submission) == {"SUBMITTED": 7, "REFUSED": 2}


async def _fill(world: World, partition: int) -> None:
    from everyrun.log.reading import end_offsets
    from everyrun.projection.feed import Feed

    ends = await end_offsets(world.settings, ("batches",))
    feed = Feed(world.settings, world.tables_pool, await topics.identity(world.settings), world.producer)
    if end := ends["batches", partition]:
        await feed.fill({("batches", partition): (0, end)})
