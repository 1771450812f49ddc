"""Why an input is still open: the reconciler records it, and the query service reads it."""

from __future__ import annotations

import pytest

from everyrun.query.overdue import REASONS, _sql, overdue_by_reason
from tests.integration.test_sweeps import Bench, bench

pytestmark = pytest.mark.stack
__all__ = ["bench"]


async def reasons(bench: Bench, per_minute: float = 80.0) -> dict[str, str]:
    rows = await bench.pool.fetch(_sql["overdue"], bench.settings.overdue_after, "s", None, None, per_minute)
    return {row["input_id"]: row["reason"] for row in rows}


async def test_overdue_input_has_its_reason(bench: Bench) -> None:
    bench.restart(overdue_after=3600)
    await bench.batch("b", ago=4000, inputs=5)
    await bench.batch("young", ago=3000)
    await bench.row(None, "SUBMITTED", "young")
    for number, (run_id, status) in enumerate(
        [("review", "NEEDS_REVIEW"), ("removed", "NEEDS_REVIEW"), ("done", "PROCESSED"), (None, "SUBMITTED")]
    ):
        await bench.row(run_id, status, "b", number)
    bench.vendor.run("review", "NEEDS_REVIEW", "b", ago=60)
    bench.vendor.run("done", "PROCESSED", "b", ago=60)
    bench.vendor.run("running", "PROCESSING", "b")
    before = {"s:b-0": "needs_review", "s:b-1": "needs_review", "s:b-3": "not_polled"}
    assert await reasons(bench) == before
    await bench.polling.poll("b", 5, overdue=True)
    # One run is gone. One is in progress and may belong to the input without a run, until a row names it.
    assert bench.log.subjects() == ["running"]
    assert await reasons(bench) == {**before, "s:b-1": "deleted_upstream", "s:b-3": "still_running"}
    await bench.row("running", "PROCESSING", "b", 4)
    now = {"s:b-0": "needs_review", "s:b-1": "deleted_upstream", "s:b-4": "still_running"}
    await bench.pool.execute("delete from everyrun_queue.gone_runs")
    assert (await reasons(bench))["s:b-3"] == "not_listed"
    await bench.pool.execute("insert into everyrun_queue.gone_runs values ('removed', 'b', now())")
    assert await reasons(bench) == {**now, "s:b-3": "deleted_upstream"}
    async with bench.pool.acquire() as connection:
        found = await overdue_by_reason(connection, bench.settings, "s", {"held": 3, "queued": 0})
    assert found == {"deleted_upstream": 2, "needs_review": 1, "still_running": 1, "held": 3}
    assert found.keys() <= REASONS.keys()


async def test_an_input_is_not_overdue_while_extend_works_on_those_before_it(bench: Bench) -> None:
    """Extend needs 500 s for the first batch at one file a minute, and as much again for the second."""
    bench.restart(overdue_after=3600)
    await bench.batch("first", ago=4300, inputs=10)
    await bench.batch("second", ago=4290, inputs=10)
    for batch in ("first", "second"):
        await bench.row(None, "SUBMITTED", batch)
    assert set(await reasons(bench, per_minute=1.2)) == {"s:first-0"}
    assert set(await reasons(bench, per_minute=80.0)) == {"s:first-0", "s:second-0"}
    await bench.pool.execute(
        "update everyrun.batches set state = 'SETTLED', settled_at = submitted_at where batch_id = 'first'"
    )
    assert set(await reasons(bench, per_minute=1.2)) == {"s:second-0"}
