"""The current run is a function of the set of an input's runs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from everyrun.projection.rules.merge import Run
from everyrun.projection.rules.run_selection import (
    Row,
    is_contested,
    order_in,
    retry_in,
    select,
    select_only,
    version_of_attempt,
    version_of_retry,
    version_of_run,
)
from tests.observations import EPOCH, observations, of_one_run


@given(st.sets(st.text(min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_the_smallest_run_id_is_selected(ids: set[str], final: bool) -> None:
    versions = {version_of_run(run_id, final, "x"): run_id for run_id in ids}
    assert versions[max(versions)] == min(ids, key=lambda run_id: run_id.encode("utf-8", "surrogatepass"))


@given(st.text(min_size=1), st.text(min_size=1), st.text(max_size=5))
def test_versions_sort_final_over_open_over_submitted_over_refused(one: str, other: str, order: str) -> None:
    assert version_of_run(one, True, order) > version_of_run(other, False, order)
    assert version_of_run(one, False, "") > version_of_attempt(other, 1, refused=False)
    assert version_of_attempt(one, 9, refused=False) > version_of_attempt(other, 1, refused=True)
    assert version_of_attempt(one, 1, refused=False) > version_of_attempt(one, 2, refused=False)
    assert order_in(version_of_run(one, True, order)) == order


ROW = Row(
    "s:1", "1", "s", 1, "c1", 1, "batch_1", None, "SUBMITTED", version_of_attempt("c1", 1, False), EPOCH, b"{}", b"{}"
)


@given(st.lists(observations(), min_size=1, max_size=8), st.randoms())
def test_the_selection_is_a_function_of_the_set_of_runs(seen: list[Run], chance: random.Random) -> None:
    whole = select(ROW, [], seen)
    shuffled = seen[:]
    chance.shuffle(shuffled)
    one_by_one: list[Run] = []
    selection = None
    for run in shuffled:
        selection = select(ROW, one_by_one, [run])
        one_by_one = [selection.current, *selection.others]
    assert selection == whole
    assert {run.run_id for run in one_by_one} == {run.run_id for run in seen}


@given(of_one_run, of_one_run)
def test_the_common_case_selects_the_same_run_as_the_general_one(one: Run, other: Run) -> None:
    first = select_only(ROW, one)
    assert first is not None
    assert (first.current, first.version) == select(ROW, [], [one])[1:3]
    row = ROW._replace(run_id=one.run_id, version=first.version, observed_at=one.observed_at)
    second = select_only(row, other)
    general = select(row, [one], [other])
    current = first.current if second is None else second.current
    assert (current.run, current.observed_at) == (general.current.run, general.current.observed_at)
    assert general.version == (first if second is None else second).version


@given(st.text(min_size=1), st.text(min_size=1), st.integers(1, 9999), st.integers(0, 9998))
def test_anything_of_a_newer_try_wins_over_everything_of_an_older_one(
    one: str, other: str, newer: int, older: int
) -> None:
    older = min(older, newer - 1)
    waiting = version_of_retry(f"c00001-r{newer}")
    assert waiting > version_of_run(other, True, "9", older)
    assert version_of_attempt(f"c00001-r{newer}", 1, refused=True) > waiting
    assert version_of_run(one, False, "", newer) > version_of_attempt(f"c00001-r{newer}", 1, refused=False)
    assert retry_in(waiting) == newer


@given(st.lists(observations(), min_size=1, max_size=6))
def test_runs_of_older_tries_never_replace_a_row_that_waits(seen: list[Run]) -> None:
    row = ROW._replace(version=version_of_retry("c1-r1"), attempt=0, status="WAITING")
    selection = select(row, [], seen)
    assert (selection.current, selection.version) == (None, row.version)
    assert {run.run_id for run in selection.others} == {run.run_id for run in seen}
    assert all(selection.is_superseded(run) for run in selection.others)
    assert is_contested(row, seen[:1], has_others=False), "so that none of them is dropped"
