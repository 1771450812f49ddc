"""``merge`` is a join-semilattice: commutative, associative and idempotent."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from everyrun.projection.rules.merge import Binding, Run, instant, merge, order_of, own_time
from tests.observations import EPOCH, a_run, of_one_run


@given(of_one_run, of_one_run)
def test_merge_is_commutative(one: Run, other: Run) -> None:
    assert merge(one, other) == merge(other, one)


@given(of_one_run, of_one_run, of_one_run)
def test_merge_is_associative(a: Run, b: Run, c: Run) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(of_one_run, of_one_run)
def test_merge_is_idempotent(one: Run, other: Run) -> None:
    assert merge(one, one) == one
    assert merge(merge(one, other), other) == merge(one, other)


@given(st.lists(of_one_run, min_size=1, max_size=6), st.randoms())
def test_a_final_status_is_never_reverted(seen: list[Run], chance: random.Random) -> None:
    shuffled = seen[:]
    chance.shuffle(shuffled)
    merged = reduce(merge, shuffled)
    assert merged == reduce(merge, seen)
    assert merged.final == any(run.final for run in seen)


def run_at(status: str, **more: object) -> str:
    given = {"own": None, "truncated": False, "polled": False, "requested_at": EPOCH, "digest": "a"} | more
    return order_of(status=status, **given)  # type: ignore[arg-type]


def test_orders_rank_observations() -> None:
    later = EPOCH + timedelta(milliseconds=1)
    in_order = [
        run_at("PENDING"),
        run_at("PROCESSING"),
        run_at("SOMETHING_NEW"),
        run_at("CANCELLING"),
        run_at("NEEDS_REVIEW"),
        run_at("FAILED"),
        run_at("FAILED", own=EPOCH, truncated=True, polled=True),
        run_at("FAILED", own=EPOCH),
        run_at("FAILED", own=EPOCH, polled=True),
        run_at("FAILED", own=EPOCH, polled=True, requested_at=later),
        run_at("PROCESSED", own=later),
    ]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == len(in_order)


def test_fields_missing_from_one_observation_are_kept_from_others() -> None:
    key = Binding("s:7", "c1", 1, "i")
    whole, later = a_run(batch_id="batch_1", binding=key), a_run(batch_id=None, binding=None, order="9")
    for merged in (merge(whole, later), merge(later, whole)):
        assert (merged.order, merged.batch_id, merged.binding) == ("9", "batch_1", key)


def test_times_are_parsed_as_extend_writes_them() -> None:
    assert instant("2025-04-28T17:01:39.285Z") == datetime(2025, 4, 28, 17, 1, 39, 285000, tzinfo=UTC)
    assert instant("2025-04-28T19:01:39+02:00") == datetime(2025, 4, 28, 17, 1, 39, tzinfo=UTC)
    assert instant("yesterday") is None
    assert instant(None) is None
    assert own_time("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z") == datetime(2025, 1, 2, tzinfo=UTC)
