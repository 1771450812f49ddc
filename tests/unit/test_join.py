"""merge is a join-semilattice, choose a function of the set, match guesses nothing."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from everyrun.projection.decode import storable
from everyrun.projection.rules.match import (
    BATCH_UNKNOWN,
    NO_BATCH,
    NO_KEY,
    OTHER_BATCH,
    Batch,
    Unmatched,
    in_order,
    match,
)
from everyrun.projection.rules.merge import FINAL, Binding, Run, instant, merge, order_of, own_time
from everyrun.projection.rules.row_version import choose, order_in, version_of_attempt, version_of_run
from everyrun.projection.rules.run_selection import Row, decide, decide_one

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
        order=order_of(status=status, own=own, truncated=truncated, polled=polled, asked_at=observed, digest=digest),
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
def test_an_end_is_never_taken_back(seen: list[Run], chance: random.Random) -> None:
    shuffled = seen[:]
    chance.shuffle(shuffled)
    standing = reduce(merge, shuffled)
    assert standing == reduce(merge, seen)
    assert standing.final == any(run.final for run in seen)


def run_at(status: str, **more: object) -> str:
    given = {"own": None, "truncated": False, "polled": False, "asked_at": EPOCH, "digest": "a"} | more
    return order_of(status=status, **given)  # type: ignore[arg-type]


def test_what_stands_before_what() -> None:
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
        run_at("FAILED", own=EPOCH, polled=True, asked_at=later),
        run_at("PROCESSED", own=later),
    ]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == len(in_order)


@given(st.sets(st.text(min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_choose_takes_the_smallest_run_id(ids: set[str], final: bool) -> None:
    versions = {version_of_run(run_id, final, "x"): run_id for run_id in ids}
    assert versions[choose(versions)] == min(ids, key=lambda run_id: run_id.encode("utf-8", "surrogatepass"))


@given(st.text(min_size=1), st.text(min_size=1), st.text(max_size=5))
def test_final_before_open_before_submitted_before_refused(one: str, other: str, order: str) -> None:
    assert version_of_run(one, True, order) > version_of_run(other, False, order)
    assert version_of_run(one, False, "") > version_of_attempt(other, 1, refused=False)
    assert version_of_attempt(one, 9, refused=False) > version_of_attempt(other, 1, refused=True)
    assert version_of_attempt(one, 1, refused=False) > version_of_attempt(one, 2, refused=False)
    assert order_in(version_of_run(one, True, order)) == order


ROW = Row(
    "s:1", "1", "s", 1, "c1", 1, "batch_1", None, "SUBMITTED", version_of_attempt("c1", 1, False), EPOCH, b"{}", b"{}"
)


@given(st.lists(observations(), min_size=1, max_size=8), st.randoms())
def test_who_stands_is_a_function_of_the_set(seen: list[Run], chance: random.Random) -> None:
    whole = decide(ROW, [], seen)
    shuffled = seen[:]
    chance.shuffle(shuffled)
    one_by_one: list[Run] = []
    decision = None
    for run in shuffled:
        decision = decide(ROW, one_by_one, [run])
        one_by_one = [decision.winner, *decision.losers]
    assert decision == whole
    assert {run.run_id for run in one_by_one} == {run.run_id for run in seen}


@given(of_one_run, of_one_run)
def test_the_common_case_decides_as_the_general_one_does(one: Run, other: Run) -> None:
    first = decide_one(ROW, one)
    assert first is not None
    assert (first.winner, first.version) == decide(ROW, [], [one])[1:3]
    row = ROW._replace(run_id=one.run_id, version=first.version, observed_at=one.observed_at)
    second = decide_one(row, other)
    general = decide(row, [one], [other])
    standing = first.winner if second is None else second.winner
    assert (standing.run, standing.observed_at) == (general.winner.run, general.winner.observed_at)
    assert general.version == (first if second is None else second).version


def test_match_guesses_nothing() -> None:
    batch = Batch("batch_1", "c1", 1)
    key = Binding("s:7", "c1", 1, "i")
    assert match("batch_1", batch, [key]) == ["s:7"]
    assert match(None, None, [key]) == Unmatched(NO_BATCH)
    assert match("batch_1", None, [key]) == Unmatched(BATCH_UNKNOWN)
    assert match("batch_1", batch, []) == Unmatched(NO_KEY)
    assert match("batch_1", batch, [Binding("s:7", "c1", 2, "i")]) == Unmatched(OTHER_BATCH)
    assert match("batch_1", batch, [Binding("s:7", "c2", 1, "i")]) == Unmatched(OTHER_BATCH)


def test_of_several_keys_those_to_this_attempt_count_in_the_order_they_were_seen() -> None:
    batch = Batch("batch_1", "c1", 1)
    seen = [Binding("s:9", "c1", 1, "i"), Binding("s:1", "c2", 1, "i"), Binding("s:7", "c1", 1, "i")]
    assert match("batch_1", batch, in_order(seen)) == ["s:9", "s:7"]
    assert in_order([*seen, *seen]) == [seen[0], seen[2], seen[1]]


def test_what_an_observation_leaves_out_is_kept_from_the_others() -> None:
    key = Binding("s:7", "c1", 1, "i")
    whole, later = a_run(batch_id="batch_1", binding=key), a_run(batch_id=None, binding=None, order="9")
    for merged in (merge(whole, later), merge(later, whole)):
        assert (merged.order, merged.batch_id, merged.binding) == ("9", "batch_1", key)


def test_times_as_vendors_write_them() -> None:
    assert instant("2025-04-28T17:01:39.285Z") == datetime(2025, 4, 28, 17, 1, 39, 285000, tzinfo=UTC)
    assert instant("2025-04-28T19:01:39+02:00") == datetime(2025, 4, 28, 17, 1, 39, tzinfo=UTC)
    assert instant("yesterday") is None
    assert instant(None) is None
    assert own_time("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z") == datetime(2025, 1, 2, tzinfo=UTC)


def test_text_that_postgres_refuses_is_replaced_and_all_else_is_kept() -> None:
    assert storable(rb'"a\u0000b"') == rb'"a\ufffdb"'
    assert storable(rb'"a\\u0000b"') == rb'"a\\u0000b"'
    assert storable(rb'"a\\\u0000b"') == rb'"a\\\ufffdb"'
    assert storable(rb'"\ud83d\ude00 \ud83d \ude00"') == rb'"\ud83d\ude00 \ufffd \ufffd"'
    assert storable(rb'"\u0000\u0000"') == rb'"\ufffd\ufffd"'
