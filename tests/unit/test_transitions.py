"""A transition publishes the events of a step before it stores the new state, or does neither."""

from __future__ import annotations

import pytest
from aiokafka.errors import KafkaError

from everyrun.submission.dispatch.classify import Accepted, Blocked, InDoubt, Refused, Returned
from everyrun.submission.dispatch.protocol import Answered, Claimed, EvidenceFound, NotPossibleError, Resent
from everyrun.submission.dispatch.transitions import UnknownChunkError
from tests.unit.dispatch_fakes import CHUNK, Dispatch


@pytest.fixture
def dispatch() -> Dispatch:
    dispatch = Dispatch()
    dispatch.queue.add(state="sending", attempt=1, owner="a worker")
    return dispatch


async def test_events_are_published_before_the_state_is_stored(dispatch: Dispatch) -> None:
    step = await dispatch.transitions.apply(CHUNK, Answered(1, Accepted("batch_1")))
    assert dispatch.journal == ["log batch-submitted", "store submitted"]
    assert step.after.batch_id == dispatch.queue.chunks[CHUNK]["batch_id"] == "batch_1"


async def test_nothing_is_stored_if_the_log_does_not_acknowledge_the_events(dispatch: Dispatch) -> None:
    dispatch.log.error = KafkaError()
    with pytest.raises(KafkaError):
        await dispatch.transitions.apply(CHUNK, Answered(1, Accepted("batch_1")))
    assert dispatch.queue.state() == ("sending", 1)


async def test_a_trigger_that_is_not_possible_publishes_and_stores_nothing(dispatch: Dispatch) -> None:
    for trigger in (Claimed(), Resent("ann", "a reason"), Answered(2, InDoubt("no answer"))):
        with pytest.raises(NotPossibleError):
            await dispatch.transitions.apply(CHUNK, trigger)
    with pytest.raises(UnknownChunkError, match="there is no chunk sub_2"):
        await dispatch.transitions.apply("sub_2.c00001", Claimed())
    assert dispatch.journal == []


async def test_an_attempt_claimed_in_another_database_is_not_touched(dispatch: Dispatch) -> None:
    with pytest.raises(NotPossibleError, match="the database changed since the claim"):
        await dispatch.transitions.apply(CHUNK, Answered(1, Returned("later")), incarnation="incarnation 0")
    assert dispatch.journal == []


async def test_events_that_are_published_already_are_not_published_again(dispatch: Dispatch) -> None:
    await dispatch.transitions.apply(CHUNK, Answered(1, Accepted("batch_1")), published=True)
    assert dispatch.journal == ["store submitted"]


async def test_the_state_is_not_stored_if_it_does_not_change(dispatch: Dispatch) -> None:
    dispatch.queue.chunks[CHUNK].update(state="submitted", batch_id="batch_1", owner=None)
    await dispatch.transitions.apply(CHUNK, EvidenceFound(1, "batch_2", "run_1"))
    assert dispatch.journal == ["log batch-submitted"]


async def test_a_returned_chunk_waits(dispatch: Dispatch) -> None:
    await dispatch.transitions.apply(CHUNK, Answered(1, Returned("later")), wait=7)
    row = dispatch.queue.chunks[CHUNK]
    assert (row["state"], row["wait"], row["reason"], row["deadline"]) == ("waiting", 7, "later", None)


async def test_a_doubt_opens_the_window_for_evidence(dispatch: Dispatch) -> None:
    await dispatch.transitions.apply(CHUNK, Answered(1, InDoubt("no answer")))
    row = dispatch.queue.chunks[CHUNK]
    assert (row["deadline"] - dispatch.clock()).total_seconds() == dispatch.settings.doubt_window


async def test_a_refused_chunk_of_several_inputs_is_replaced_by_its_parts(dispatch: Dispatch) -> None:
    await dispatch.transitions.apply(CHUNK, Answered(1, Refused(400, "INVALID", "no")))
    assert dispatch.events() == ["batch-cut"]
    assert {chunk: row["state"] for chunk, row in dispatch.queue.chunks.items()} == {
        CHUNK: "cut",
        f"{CHUNK}-1": "waiting",
        f"{CHUNK}-2": "waiting",
    }


@pytest.mark.parametrize("scope", ["workflow", "submission"])
async def test_what_extend_blocks_is_paused(dispatch: Dispatch, scope: str) -> None:
    await dispatch.transitions.apply(CHUNK, Answered(1, Blocked("402", scope)))  # type: ignore[arg-type]
    assert dispatch.queue.paused == [(scope, {"workflow": "workflow_1", "submission": "sub_1"}[scope])]
    assert dispatch.events() == ["batch-returned", f"{scope}-paused"]
