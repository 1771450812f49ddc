"""Lists: every order, filter and page size gives what a plain sort of all runs would."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everyrun.emulator.listing import in_all, in_batch, list_runs
from everyrun.emulator.runs import Run
from everyrun.emulator.timeline import Timeline
from everyrun.emulator.validate import ApiProblem

NOW = 1e12


def made(count: int) -> list[Run]:
    runs = []
    for number in range(count):
        file = b'{"url":"https://a.example/%d.pdf?x=y"}' % number
        run = Run(number, f"workflow_run_{number}", f"batch_{number % 2}", "workflow_1", "1", file, b"{}", number // 3)
        runs.append(run)
    return runs


def pages(source, **query: str) -> list[str]:
    found: list[str] = []
    while True:
        page = list_runs(source, query, 0.0, NOW)
        assert len(page["data"]) <= int(query.get("maxPageSize", 10))
        found += [run["id"] for run in page["data"]]
        if "nextPageToken" not in page:
            return found
        assert page["data"]
        query["nextPageToken"] = page["nextPageToken"]


@settings(max_examples=60, deadline=None)
@given(
    touched=st.lists(st.integers(0, 29), max_size=80),
    failed=st.sets(st.integers(0, 29)),
    gone=st.sets(st.integers(0, 29), max_size=5),
    by=st.sampled_from(["updatedAt", "createdAt"]),
    direction=st.sampled_from(["asc", "desc"]),
    size=st.integers(1, 40),
    status=st.sampled_from([None, "FAILED"]),
)
def test_all_pages_together_are_the_sorted_list(touched, failed, gone, by, direction, size, status):
    runs = made(30)
    timeline = Timeline(runs)
    for number in touched:
        timeline.touch(runs[number])
    for run in runs:
        run.status = "FAILED" if run.number in failed else "PROCESSED"
        run.deleted = run.number in gone
    query = {"sortBy": by, "sortDir": direction, "maxPageSize": str(size)} | ({"status": status} if status else {})
    wanted = [run for run in runs if not run.deleted and status in (None, run.status)]
    wanted.sort(
        key=lambda run: (run.updated_at if by == "updatedAt" else run.created_at, run.number),
        reverse=direction == "desc",
    )
    everything = pages(in_all(runs, timeline), **query)
    if by == "updatedAt":
        # Runs that were never touched have one time, 0, here; only among them is the order open.
        ever = [run.id for run in wanted if run.updated_at]
        assert [i for i in everything if i in ever] == ever
    else:
        assert everything == [run.id for run in wanted]
    one = [run for run in wanted if run.batch_id == "batch_0"]
    assert pages(in_batch([run for run in runs if run.batch_id == "batch_0"]), **query) == [run.id for run in one]


def test_a_list_starts_with_the_run_that_changed_last():
    runs = made(5)
    timeline = Timeline(runs)
    for number in (0, 1, 2, 3, 4, 1):
        timeline.touch(runs[number])
    assert pages(in_all(runs, timeline))[0] == "workflow_run_1"


def test_the_timeline_removes_old_entries():
    runs = made(2)
    timeline = Timeline(runs)
    for turn in range(40_000):
        timeline.touch(runs[turn % 2])
    assert len(timeline._times) < 20_000
    assert [run.number for run in timeline.newest_first(None)] == [1, 0]


def test_a_list_is_filtered():
    runs = made(12)
    source = in_all(runs, Timeline(runs))
    assert pages(source, fileNameContains="11.p", sortBy="createdAt") == ["workflow_run_11"]
    assert pages(source, fileNameContains="x=y") == []
    assert pages(source, workflowId="workflow_2") == []
    runs[3].listed_at = NOW + 1
    assert "workflow_run_3" not in pages(source, sortBy="createdAt")


@pytest.mark.parametrize(
    "query",
    [
        {"maxPageSize": "0"},
        {"maxPageSize": "1001"},
        {"maxPageSize": "9" * 5000},
        {"maxPageSize": "x"},
        {"maxPageSize": "²"},
        {"sortBy": "id"},
        {"sortDir": "up"},
        {"status": "DONE"},
        {"nextPageToken": "?"},
        {"nextPageToken": "bm90IG91cnM="},
        {"nextPageToken": "e30="},
        {"nextPageToken": "W251bGwsIDEsIDJd"},
    ],
)
def test_a_wrong_query_is_refused(query: dict[str, str]):
    with pytest.raises(ApiProblem) as raised:
        list_runs(in_batch(made(2)), query, 0.0, NOW)
    assert raised.value.status == 400
    assert next(iter(query)) in raised.value.message


def test_a_cursor_is_valid_only_with_its_filters():
    source = in_batch(made(3))
    first = list_runs(source, {"maxPageSize": "1", "sortBy": "createdAt"}, 0.0, NOW)
    token = first["nextPageToken"]
    assert list_runs(source, {"maxPageSize": "2", "sortBy": "createdAt", "nextPageToken": token}, 0.0, NOW)["data"]
    for other in ({"sortBy": "updatedAt"}, {"sortBy": "createdAt", "status": "FAILED"}, {}):
        with pytest.raises(ApiProblem, match="other filters"):
            list_runs(source, {**other, "nextPageToken": token}, 0.0, NOW)
