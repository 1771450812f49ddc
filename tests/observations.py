"""Hypothesis strategies for observations of runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from everyrun.projection.rules.merge import FINAL, Binding, Run, order_of

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
moments = st.integers(0, 5).map(lambda n: EPOCH + timedelta(seconds=n))
statuses = st.sampled_from(
    ["PENDING", "PROCESSING", "CANCELLING", "NEEDS_REVIEW", "PROCESSED", "FAILED", "CANCELLED", "REJECTED", "NEW_ONE"]
)
bindings = st.none() | st.builds(
    Binding, st.sampled_from(["s:1", "s:2"]), st.just("c1"), st.integers(1, 2), st.just("i")
)


@st.composite
def observations(draw: st.DrawFn, run_id: str | None = None) -> Run:
    status, own, polled = draw(statuses), draw(st.none() | moments), draw(st.booleans())
    truncated, observed, content = draw(st.booleans()), draw(moments), draw(st.sampled_from("abc"))
    # As in the log, equal digests mean equal content: what differs in status or time differs in both.
    digest = f"{status}{own}{content}"
    return Run(
        run_id=run_id or draw(st.sampled_from(["run_1", "run_10", "run_2"])),
        batch_id=draw(st.sampled_from([None, "batch_1"])),
        binding=draw(bindings),
        status=status,
        order=order_of(
            status=status, own=own, truncated=truncated, polled=polled, requested_at=observed, digest=digest
        ),
        observed_at=observed,
        settled_at=own if status in FINAL else None,
        source="poll" if polled else "webhook",
        failure_reason=None,
        failure_message=None,
        credits=None,
        metadata=b"{}",
        run=digest.encode(),
    )


of_one_run = observations(run_id="run_1")


def a_run(*, batch_id: str | None, binding: Binding | None, order: str = "1") -> Run:
    return Run("run_1", batch_id, binding, "PROCESSED", order, EPOCH, EPOCH, "webhook", None, None, None, b"{}", b"{}")
