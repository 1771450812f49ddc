"""The dispatcher announces an attempt before it calls Extend, calls once, and applies every kind of answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from aiokafka.errors import KafkaError

from everyrun.submission.dispatch import dispatcher
from tests.unit.dispatch_fakes import CHUNK, Dispatch

NO_ANSWER = httpx.ReadTimeout("no answer")


def problem(status: int, message: str = "no", code: str = "SOME_CODE", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": message, "retryable": False}, headers=headers)


@pytest.fixture
def dispatch() -> Dispatch:
    dispatch = Dispatch()
    dispatch.queue.add()
    return dispatch


async def test_the_attempt_is_announced_before_the_call_and_the_answer_before_it_is_stored(dispatch: Dispatch) -> None:
    assert await dispatch.dispatcher.send_one()
    assert dispatch.journal == ["claim", "log batch-requested", "call", "log batch-submitted", "store submitted"]
    assert dispatch.queue.chunks[CHUNK]["batch_id"] == "batch_1"


async def test_the_call_has_the_inputs_with_the_reserved_key(dispatch: Dispatch) -> None:
    await dispatch.dispatcher.send_one()
    (body,) = dispatch.extend.bodies
    assert (body["workflow"], body["priority"]) == ({"id": "workflow_1"}, 90)
    assert [given["file"]["url"] for given in body["inputs"]] == ["https://e.com/1?signed", "https://e.com/2?signed"]
    assert all(CHUNK in str(given["metadata"]) for given in body["inputs"])


async def test_nothing_is_claimed_if_nothing_waits(dispatch: Dispatch) -> None:
    dispatch.queue.chunks.clear()
    assert not await dispatch.dispatcher.send_one()
    assert dispatch.journal == []


async def test_extend_is_not_called_if_kafka_does_not_acknowledge_the_attempt(dispatch: Dispatch) -> None:
    def fail() -> None:
        raise KafkaError

    dispatch.log.during["batch-requested"] = fail
    with pytest.raises(KafkaError):
        await dispatch.dispatcher.send_one()
    assert dispatch.journal == ["claim", "store waiting"]
    assert dispatch.queue.chunks[CHUNK]["wait"] == 2


@pytest.mark.parametrize(
    ("meanwhile", "state"),
    [
        (lambda dispatch: dispatch.clock.advance(31), "waiting"),
        (lambda dispatch: dispatch.queue.chunks[CHUNK].update(owner=None), "waiting"),
        (lambda dispatch: dispatch.queue.chunks[CHUNK].update(batch_id="batch_of_attempt_0"), "submitted"),
        (lambda dispatch: setattr(dispatch.queue, "incarnation", "incarnation 2"), "sending"),
    ],
    ids=["the deadline passed", "the claim was revoked", "an earlier attempt was accepted", "the database changed"],
)
async def test_extend_is_not_called_if_the_attempt_became_invalid_meanwhile(
    dispatch: Dispatch, meanwhile: Callable[[Dispatch], None], state: str
) -> None:
    dispatch.log.during["batch-requested"] = lambda: meanwhile(dispatch)
    await dispatch.dispatcher.send_one()
    assert "call" not in dispatch.journal
    assert dispatch.queue.state() == (state, 1)


@pytest.mark.parametrize(
    ("answer", "state", "event"),
    [
        (NO_ANSWER, "in_doubt", "batch-in-doubt"),
        (problem(500), "in_doubt", "batch-in-doubt"),
        (httpx.Response(200, json={}), "held", "batch-in-doubt"),
        (httpx.ConnectError("refused"), "waiting", "batch-returned"),
        (problem(429), "waiting", "batch-returned"),
        (problem(400), "cut", "batch-cut"),
        (problem(402), "waiting", "batch-returned"),
    ],
)
async def test_every_kind_of_answer_is_published_and_stored(
    dispatch: Dispatch, answer: httpx.Response | httpx.HTTPError, state: str, event: str
) -> None:
    dispatch.extend.answer = answer
    await dispatch.dispatcher.send_one()
    assert dispatch.journal.index(f"log {event}") < dispatch.journal.index(f"store {state}")
    assert dispatch.queue.state() == (state, 1)
    assert dispatch.journal.count("call") == 1


async def test_an_answer_that_blocks_the_workflow_pauses_it(dispatch: Dispatch) -> None:
    dispatch.extend.answer = problem(402, "out of credits")
    await dispatch.dispatcher.send_one()
    assert dispatch.queue.paused == [("workflow", "workflow_1")]
    assert dispatch.events()[-1] == "workflow-paused"


async def test_a_rate_limit_delays_all_calls(dispatch: Dispatch) -> None:
    dispatch.extend.answer = problem(429, **{"retry-after": "7"})
    await dispatch.dispatcher.send_one()
    assert dispatch.extend.pauses == [7.0]
    assert dispatch.queue.chunks[CHUNK]["wait"] == 7.0


async def test_calls_are_delayed_only_after_several_without_an_answer(dispatch: Dispatch) -> None:
    dispatch.extend.answer = httpx.ConnectError("refused")
    await dispatch.dispatcher.send_one()
    assert dispatch.extend.pauses == []
    await dispatch.dispatcher.send_one()
    assert dispatch.extend.pauses == [1.0]


async def test_an_answer_is_applied_after_kafka_is_available_again(
    dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [KafkaError(), KafkaError()]

    def fail_twice() -> None:
        if failures:
            raise failures.pop()

    async def no_time(_seconds: float) -> None:
        pass

    monkeypatch.setattr(dispatcher.asyncio, "sleep", no_time)
    dispatch.log.during["batch-submitted"] = fail_twice
    await dispatch.dispatcher.send_one()
    assert dispatch.queue.state() == ("submitted", 1)
    assert dispatch.events() == ["batch-requested", "batch-submitted"]


async def test_an_accepted_batch_is_published_even_if_the_database_was_replaced_during_the_call(
    dispatch: Dispatch,
) -> None:
    def replace() -> None:
        dispatch.queue.incarnation = "incarnation 2"
        dispatch.queue.chunks[CHUNK].update(state="waiting", attempt=0, owner=None)

    dispatch.log.during["batch-submitted"] = replace
    await dispatch.dispatcher.send_one()
    assert dispatch.events() == ["batch-requested", "batch-submitted"]
    assert dispatch.queue.state() == ("waiting", 0), "recovery from the log brings it up to date"


async def test_the_worker_stops_when_asked(dispatch: Dispatch) -> None:
    stop = asyncio.Event()
    working = asyncio.create_task(dispatch.dispatcher.work(stop))
    while dispatch.queue.state()[0] != "submitted":
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.wait_for(working, 5)


async def test_a_look_wakes_idle_workers_only_if_a_chunk_can_be_sent(dispatch: Dispatch) -> None:
    await dispatch.dispatcher.look()
    assert dispatch.dispatcher.wake.is_set()
    await dispatch.dispatcher.send_one()
    dispatch.dispatcher.wake.clear()
    await dispatch.dispatcher.look()
    assert not dispatch.dispatcher.wake.is_set()
