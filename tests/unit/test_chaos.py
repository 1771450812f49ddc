"""The pure parts of the chaos and soak runs: cells, outcomes, comparisons and memory growth."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chaos.archive_check import RecordPosition, missing
from chaos.cells import ALL, MATRIX, MAX_GAP, TOOL_TARGETS, WITHOUT_CELL, NoSuchCellError, select
from chaos.commands import Ended, problems_of_end
from chaos.log_witness import missing_webhooks, unpublished_inputs
from chaos.memory import WARM, Sample, slope, sparkline
from chaos.outcomes import Outcome
from chaos.tools_under_test import TOOLS, differences
from chaos.unexplained_stalls import STALL_AFTER, StallRecord, reason_in

from chaos import jobs, outcomes, play_job, trial
from everyrun.emulator.faults import parse_faults
from everyrun.failpoints import POINTS


def test_the_matrix_covers_every_service_every_strike_and_every_fault() -> None:
    names = [cell.name for cell in MATRIX]
    for service in ("submission", "bridge", "processor", "reconciler"):
        assert {f"{service}/{how}" for how in ("kill", "stop", "term")} <= set(names)
    assert {"kafka/restart", "kafka/kill", "postgres/restart", "postgres/kill"} <= set(names)
    assert sum(name.startswith("extend/") for name in names) == 9
    of_a_job = {point for point in POINTS if point.partition(".")[0] not in WITHOUT_CELL}
    assert {cell.point for cell in ALL if cell.point} == of_a_job
    assert len({cell.name for cell in ALL}) == len(ALL)
    for cell in ALL:
        parse_faults(cell.faults)


def test_cells_are_selected_by_patterns() -> None:
    assert select("") == list(ALL)
    assert [cell.name for cell in select("bridge/*, extend/429")] == [
        "bridge/kill",
        "bridge/stop",
        "bridge/term",
        "extend/429",
    ]
    with pytest.raises(NoSuchCellError, match="brigde"):
        select("brigde/kill")


def test_the_same_seed_gives_the_same_strikes() -> None:
    (cell,) = select("bridge/kill")
    assert cell.strikes(1) == cell.strikes(1) != cell.strikes(2)
    assert [(strike.part, strike.how) for strike in cell.strikes(1)] == [("bridge", "kill")] * 3


def test_every_pair_of_parts_is_killed_twice_within_two_seconds() -> None:
    cells = select("pair/*")
    assert [cell.name for cell in cells] == [
        "pair/submission+kafka",
        "pair/submission+postgres",
        "pair/submission+processor",
        "pair/kafka+postgres",
        "pair/kafka+processor",
        "pair/postgres+processor",
    ]
    for cell in cells:
        assert cell.pair_strikes(1) == cell.pair_strikes(1) != cell.pair_strikes(2)
        strikes = [strike for seed in range(50) for strike in cell.pair_strikes(seed)]
        assert len(strikes) == 100
        assert all({strike.first, strike.second} == set(cell.pair) for strike in strikes)
        assert {strike.first for strike in strikes} == set(cell.pair)
        assert all(0 <= strike.gap <= MAX_GAP < 2 for strike in strikes)


def test_every_tool_is_struck_itself_and_through_kafka_and_postgres() -> None:
    cells = select("audit/*")
    assert [cell.tool for cell in cells] == ["rebuild", "audit", "as-of", "archive"] == list(TOOLS)
    for cell in cells:
        assert {strike.part for strike in cell.tool_strikes(1)} == set(TOOL_TARGETS) == {"tool", "kafka", "postgres"}
        assert cell.tool_strikes(1) == cell.tool_strikes(1) != cell.tool_strikes(2)


def ended(code: int | None, err: str = "", out: str = "") -> Ended:
    return Ended(code, out, err, 2.0)


def test_a_command_ends_with_0_or_with_an_error_message() -> None:
    assert problems_of_end("rebuild", ended(0, "Schema everyrun_rebuild: 3 records"), (1,)) == []
    assert problems_of_end("rebuild", ended(1, "everyrun: KafkaConnectionError: no broker"), (1,)) == []
    assert problems_of_end("rebuild", ended(1, "rebuild ━━━ 3/9 records\neveryrun: gone"), (1,)) == []
    wrong = {
        "did not end": ended(None, "rebuild ━━━"),
        "a traceback": ended(1, "Traceback (most recent call last)\nValueError: x"),
        "exit code 2": ended(2, "everyrun: no"),
        "exit code -9": ended(-9),
        "without a message": ended(1, "everyrun: \nsomething"),
    }
    for text, end in wrong.items():
        (problem,) = problems_of_end("rebuild", end, (1,))
        assert text in problem


def test_the_last_line_of_a_command_is_not_a_progress_bar() -> None:
    assert ended(0, "done: 3\nrebuild ━━━━ 3/3 records\n\n").last == "done: 3"


def test_unsent_inputs_that_stall_need_a_reason() -> None:
    stalls = StallRecord()
    stuck = {"WAITING": 400, "PROCESSED": 100}
    assert not stalls.observe(stuck, True, 0.0)
    # Settled inputs do not move those that wait.
    assert not stalls.observe({**stuck, "PROCESSED": 120}, True, STALL_AFTER - 1)
    assert stalls.observe(stuck, True, STALL_AFTER + 1)
    stalls.record_reason("")
    assert not stalls.observe(stuck, True, STALL_AFTER + 2)
    assert stalls.observe(stuck, True, STALL_AFTER + 15)
    stalls.record_reason("in doubt until 12:00")
    assert stalls.unexplained == f"stalled for {STALL_AFTER + 1:.0f} s without a reason: 400 WAITING"


def test_a_part_that_is_down_is_a_reason_and_submitted_inputs_need_none() -> None:
    stalls = StallRecord()
    for second in range(60):
        assert not stalls.observe({"WAITING": 400}, second % 4 != 0, float(second))
    for second in range(60, 120):
        assert not stalls.observe({"SUBMITTED": 400}, True, float(second))
    for second in range(120, 180):
        assert not stalls.observe({"WAITING": 400 - second}, True, float(second))
    assert stalls.unexplained == ""


def test_the_reason_is_the_last_column_of_the_submissions_row() -> None:
    listed = (
        "┃ submission ┃ handed in ┃ inputs ┃ held up by            ┃\n"
        "│ sub_1      │ today     │ 400    │                       │\n"
        "│ sub_2      │ today     │ 400    │ calls in doubt, see … │\n"
    )
    assert reason_in(listed, "sub_2") == "calls in doubt, see …"
    assert reason_in(listed, "sub_1") == reason_in(listed, "sub_3") == reason_in("", "sub_1") == ""


def test_rows_are_compared_as_text() -> None:
    live = {"results": ["(1,a)", "(2,b)"], "batches": ["(x)"]}
    assert differences(live, {table: list(rows) for table, rows in live.items()}) == []
    (changed,) = differences(live, {**live, "results": ["(1,a)", "(2,c)"]})
    assert changed.startswith("results: 1 rows only live, 1 only rebuilt: (2,b)")
    assert differences(live, {**live, "batches": ["(x)", "(x)"]})
    assert differences(live, {"results": live["results"]})
    assert "nothing was compared" in differences({}, {})[0]


def test_a_record_that_the_archive_lacks_or_changed_is_named() -> None:
    log = {RecordPosition("runs", 0, offset): bytes([offset]) for offset in range(3)}
    assert missing(log, {**log, RecordPosition("results", 0, 7): b"compacted since"}) == []
    assert (
        "lacks 1 of 3 records of the log, for example runs/0@1"
        in missing(log, {**log, RecordPosition("runs", 0, 1): b"x"})[0]
    )
    assert "runs/0@0" in missing(log, {})[0]
    assert "nothing was compared" in missing({}, {})[0]


def an_outcome(**more: object) -> Outcome:
    given = {
        "cell": "bridge/kill",
        "seed": 1,
        "what": "bridge: kill -9",
        "seconds": 21.4,
        "expected": 5000,
        "settled": 5000,
        "duplicates": 0,
        "double_batches": 0,
        "deaths": 3,
        "problems": [],
        "machine": "2 cores",
        "date": "2026-11-26",
    }
    return Outcome(**{**given, **more})  # type: ignore[arg-type]


def test_an_outcome_is_kept_until_it_is_deleted(tmp_path: Path) -> None:
    (cell,) = select("bridge/kill")
    assert outcomes.known(tmp_path, cell, 1) is None
    outcomes.keep(tmp_path, an_outcome())
    assert outcomes.known(tmp_path, cell, 1) == an_outcome()
    assert outcomes.known(tmp_path, cell, 2) is None
    outcomes.forget(tmp_path, cell, 1)
    assert outcomes.known(tmp_path, cell, 1) is None


def test_audits_are_kept_with_the_cells(tmp_path: Path) -> None:
    good, bad = (
        an_outcome(cell="log-of/bridge/kill"),
        an_outcome(cell="log-of/kafka/kill", seed=2, problems=["differs"]),
    )
    for one in (an_outcome(), an_outcome(cell="audit/rebuild"), bad, good):
        outcomes.keep(tmp_path, one)
    assert outcomes.audits(tmp_path) == [good, bad]
    table = outcomes.audits_markdown([good, bad])
    assert "| 1 | 21 s | the tables agree with the log | bridge: kill -9 |" in table
    assert "FAILED: differs" in table


def test_each_table_replaces_its_part_of_the_page() -> None:
    page = "head\n<!-- matrix: begin -->\nold\n<!-- matrix: end -->\ntail\n"
    text = outcomes.markdown([an_outcome(), an_outcome(problems=["1 input | is open"])])
    written = outcomes.into_page(page, "matrix", text)
    assert written.startswith("head\n<!-- matrix: begin -->\n| cell | seed |")
    assert written.endswith("<!-- matrix: end -->\ntail\n")
    assert (
        "| bridge/kill | 1 | 21 s | 5,000 of 5,000 | 0 | 0 | 3 | balanced, equals the truth | bridge: kill -9 |"
        in written
    )
    assert "FAILED: 1 input \\| is open" in written
    assert outcomes.into_page(written, "matrix", text) == written
    with pytest.raises(ValueError, match="others"):
        outcomes.into_page(page, "others", text)


def test_acknowledged_webhooks_missing_from_the_log_are_found() -> None:
    truth = [{"run_id": f"run_{n}", "webhooks": {"delivered": n % 2}} for n in range(4)]
    assert missing_webhooks(truth, {"run_1", "run_2"}) == ["run_3"]
    assert unpublished_inputs({"a": "2", "b": "1", "c": "1"}, {"a": "1", "b": "1"}) == ["a", "c"]


def a_life(pid: int, start: float, until: float, level: float, growth: float) -> list[Sample]:
    """Return samples of a process that grows by 50 MB until it is warm, and then by ``growth`` MB a minute."""
    chance = random.Random(pid)
    times = [start + 2 * k for k in range(int((until - start) / 2))]
    warming = [50 * min(at - start, WARM) / WARM for at in times]
    noise = [chance.gauss(0, 0.1) for _ in times]
    resident = [level + warm + growth * at / 60 + off for at, warm, off in zip(times, warming, noise, strict=True)]
    return [Sample(at, "bridge", pid, at - start, mb) for at, mb in zip(times, resident, strict=True)]


def test_the_slope_is_the_growth_of_warm_processes_whatever_their_size() -> None:
    lives = a_life(1, 0, 300, 80, 2.0) + a_life(2, 303, 600, 20, 2.0)
    found = slope(lives)
    assert found is not None
    assert abs(found - 2.0) < 0.1
    flat = slope(a_life(1, 0, 300, 80, 0.0) + a_life(2, 303, 600, 200, 0.0))
    assert flat is not None
    assert abs(flat) < 0.1


def test_too_few_warm_samples_give_no_slope() -> None:
    assert slope([]) is None
    assert slope(a_life(1, 0, WARM + 30, 80, 2.0)) is None


def test_a_sparkline_spans_the_lowest_and_highest_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([0, 7, 14]) == "▁▄█" or sparkline([0, 7, 14]) == "▁▅█"
    assert sparkline(list(range(600)), width=8) == "▁▂▃▄▅▆▇█"


class FakeStage:
    """A stage without a stack: its failpoints never strike."""

    stack = http = None
    endpoints = {"kafka_bootstrap": "nowhere"}  # noqa: RUF012

    def __init__(self) -> None:
        self.armed: list[str] = []
        self.set_faults = ""

    async def faults(self, faults: str) -> None:
        self.set_faults = faults

    async def runs(self) -> int:
        return 7

    def restarts(self) -> int:
        return 3

    def arm(self, point: str) -> None:
        self.armed.append(point)

    def has_struck(self, _point: str) -> bool:
        return False

    def disarm(self) -> None:
        self.armed.clear()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> FakeStage:
    """A fake stage, on which each job settles at once and agrees with the truth."""

    async def nothing(*_: Any) -> None:
        pass

    async def submit(*_: Any) -> str:
        return "sub_1"

    async def judge(_http: Any, _endpoints: Any, submission_id: str, _witness: Any, _until: float, before: int) -> Any:
        assert (submission_id, before) == ("sub_1", 7)
        comparison = SimpleNamespace(duplicates=2, double_batches=1)
        return SimpleNamespace(report={"settled": 598}, comparison=comparison, problems=["2 inputs are open"])

    monkeypatch.setattr(trial, "all_ready", nothing)
    monkeypatch.setattr(play_job, "strike_all", nothing)
    monkeypatch.setattr(trial.LogWitness, "from_now", nothing)
    for name, fake in {"submit": submit, "settle": nothing, "judge": judge}.items():
        monkeypatch.setattr(jobs, name, fake)
    return FakeStage()


async def test_a_cell_sets_its_faults_and_sums_up_its_job(stage: Any) -> None:
    (cell,) = select("bridge/kill")
    outcome = await play_job.play(stage, cell, 1, print, inputs=5000)
    assert stage.set_faults == cell.faults
    assert (outcome.expected, outcome.settled, outcome.duplicates, outcome.double_batches) == (5000, 598, 2, 1)
    assert (outcome.deaths, outcome.problems) == (0, ["sub_1: 2 inputs are open"])


async def test_a_failpoint_that_is_never_reached_is_a_problem(stage: Any) -> None:
    (cell,) = select("point/dispatcher.after_post")
    outcome = await play_job.play(stage, cell, 1, print)
    assert (outcome.expected, stage.armed) == (play_job.POINT_INPUTS, [])
    assert "the job never reached this failpoint" in outcome.problems
