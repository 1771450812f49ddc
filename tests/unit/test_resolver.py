"""The resolver never resends an attempt that Extend may have accepted, unless its window and two sweeps passed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from everyrun.submission.dispatch import resolver
from tests.unit.dispatch_fakes import CHUNK, Dispatch


@pytest.fixture
def dispatch(monkeypatch: pytest.MonkeyPatch) -> Dispatch:
    dispatch = Dispatch()

    async def end_offsets(*_arguments: Any) -> dict[tuple[str, int], int]:
        return dispatch.log_ends

    monkeypatch.setattr(resolver, "end_offsets", end_offsets)
    return dispatch


def claim(dispatch: Dispatch, *, announced: bool, seconds: float) -> None:
    """Add a chunk whose attempt was claimed ``seconds`` ago by a worker that is gone."""
    row = dispatch.queue.add()
    dispatch.queue._claim("a worker", 30 + 300 + resolver.CALL_MARGIN, dispatch.queue.incarnation, 0)
    row.update(announced=1 if announced else 0)
    dispatch.clock.advance(seconds)
    dispatch.journal.clear()


def doubt(dispatch: Dispatch, **columns: Any) -> None:
    """Add a chunk in doubt whose window ends in 900 seconds."""
    dispatch.queue.add(state="in_doubt", attempt=1, deadline=dispatch.clock() + timedelta(seconds=900), **columns)


def evidence(batch_id: str = "batch_1") -> dict[str, Any]:
    return {"chunk": CHUNK, "attempt": 1, "batch_id": batch_id, "run_id": "run_1"}


async def test_a_call_in_progress_is_left_alone(dispatch: Dispatch) -> None:
    claim(dispatch, announced=True, seconds=331)
    dispatch.queue.evidence = [evidence()]
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("sending", 1)


async def test_a_call_whose_worker_is_gone_becomes_in_doubt_after_the_deadline(dispatch: Dispatch) -> None:
    claim(dispatch, announced=True, seconds=333)
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("in_doubt", 1)
    assert dispatch.journal == ["catch up", "log batch-in-doubt", "store in_doubt"]


async def test_an_attempt_that_was_never_announced_waits_again_after_its_claim_was_revoked(dispatch: Dispatch) -> None:
    claim(dispatch, announced=False, seconds=31)
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("waiting", 1)
    assert dispatch.journal == ["store sending", "catch up", "store waiting"], "revoke, read the log, then return"
    assert dispatch.events() == []


async def test_an_attempt_that_the_log_knows_after_all_does_not_wait_again(dispatch: Dispatch) -> None:
    claim(dispatch, announced=False, seconds=31)
    dispatch.recovery.on_catch_up = lambda: dispatch.queue.chunks[CHUNK].update(announced=1)
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("sending", 1)


async def test_evidence_proves_that_extend_accepted_the_attempt(dispatch: Dispatch) -> None:
    doubt(dispatch)
    dispatch.queue.evidence = [evidence()]
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("submitted", 1)
    assert (dispatch.events(), dispatch.queue.adopted) == (["batch-submitted"], [(CHUNK, 1, "batch_1")])


async def test_evidence_that_matches_no_attempt_is_retried_only_after_the_chunk_changed(dispatch: Dispatch) -> None:
    row = dispatch.queue.add()
    dispatch.queue.evidence = [evidence()]
    for _ in range(2):
        await dispatch.resolver.resolve()
        assert (dispatch.queue.state(), dispatch.events()) == (("waiting", 0), [])
    row.update(attempt=1)
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("submitted", 1)


async def test_a_chunk_is_resent_only_after_the_window_and_two_complete_sweeps(dispatch: Dispatch) -> None:
    doubt(dispatch)
    for seconds, sweeps in ((0, 2), (901, 0), (0, 1)):
        dispatch.clock.advance(seconds)
        dispatch.queue.sweeps = sweeps
        await dispatch.resolver.resolve()
        assert dispatch.queue.state() == ("in_doubt", 1)
    dispatch.queue.sweeps = 2
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("waiting", 1)
    assert dispatch.events() == ["doubt-resent"]


async def test_a_chunk_is_not_resent_before_the_tables_hold_the_log(dispatch: Dispatch) -> None:
    doubt(dispatch)
    dispatch.clock.advance(901)
    dispatch.queue.sweeps, dispatch.log_ends = 2, {("runs", 0): 5}
    dispatch.queue.applied = {("runs", 0): 4}
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("in_doubt", 1)
    # Only the end at that time counts: runs that arrived since do not delay the chunk.
    dispatch.queue.applied, dispatch.log_ends = {("runs", 0): 5}, {("runs", 0): 9}
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("waiting", 1)


async def test_evidence_that_arrives_last_prevents_the_resend(dispatch: Dispatch) -> None:
    doubt(dispatch)
    dispatch.clock.advance(901)
    dispatch.queue.sweeps = 2
    dispatch.recovery.on_catch_up = lambda: dispatch.queue.chunks[CHUNK].update(state="submitted", batch_id="batch_1")
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("submitted", 1)
    assert dispatch.events() == []


@pytest.mark.parametrize(
    ("resends", "witness", "reason"),
    [(1, None, "after the maximum number of resends"), (0, "run_7", "run_7 names the chunk, but no batch")],
)
async def test_a_chunk_is_held_if_only_a_person_can_decide(
    dispatch: Dispatch, resends: int, witness: str | None, reason: str
) -> None:
    doubt(dispatch, resends=resends)
    dispatch.clock.advance(901)
    dispatch.queue.sweeps, dispatch.queue.witness = 2, witness
    await dispatch.resolver.resolve()
    assert dispatch.queue.state() == ("held", 1)
    assert reason in dispatch.queue.chunks[CHUNK]["reason"]
