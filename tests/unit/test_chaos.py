"""The parts of the chaos and soak runs that decide: which cells, what is kept, what is wrong, what grows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chaos.archived import Place, missing
from chaos.cells import ALL, MATRIX, MOST_GAP, STRUCK, NoSuchCellError, select
from chaos.commands import Ended, unclear
from chaos.memory import WARM, Sample, slope, sparkline
from chaos.outcomes import Outcome
from chaos.standstill import STILL, Standstill, reason_in
from chaos.tools import TOOLS, differences
from chaos.witness import unheard, unpublished

from chaos import outcomes
from everyrun.emulator.faults import parse_faults
from everyrun.failpoints import POINTS


def test_the_matrix_has_every_service_in_every_way_and_every_fault() -> None:
    names = [cell.name for cell in MATRIX]
    for service in ("submission", "bridge", "processor", "reconciler"):
        assert {f"{service}/{how}" for how in ("kill", "stop", "term")} <= set(names)
    assert {"kafka/restart", "kafka/kill", "postgres/restart", "postgres/kill"} <= set(names)
    assert sum(name.startswith("extend/") for name in names) == 9
    assert {cell.point for cell in ALL if cell.point} == set(POINTS)
    assert len({cell.name for cell in ALL}) == len(ALL)
    for cell in ALL:
        parse_faults(cell.faults)


def test_cells_are_chosen_by_patterns() -> None:
    assert select("") == list(ALL)
    assert [cell.name for cell in select("bridge/*, extend/429")] == [
        "bridge/kill",
        "bridge/stop",
        "bridge/term",
        "extend/429",
    ]
    with pytest.raises(NoSuchCellError, match="brigde"):
        select("brigde/kill")


def test_the_same_seed_strikes_the_same() -> None:
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
        assert cell.volleys(1) == cell.volleys(1) != cell.volleys(2)
        volleys = [volley for seed in range(50) for volley in cell.volleys(seed)]
        assert len(volleys) == 100
        assert all({volley.first, volley.second} == set(cell.pair) for volley in volleys)
        assert {volley.first for volley in volleys} == set(cell.pair)
        assert all(0 <= volley.gap <= MOST_GAP < 2 for volley in volleys)


def test_every_tool_is_struck_itself_and_in_what_it_stands_on() -> None:
    cells = select("audit/*")
    assert [cell.tool for cell in cells] == ["rebuild", "audit", "as-of", "archive"] == list(TOOLS)
    for cell in cells:
        assert {strike.part for strike in cell.tool_strikes(1)} == set(STRUCK) == {"tool", "kafka", "postgres"}
        assert cell.tool_strikes(1) == cell.tool_strikes(1) != cell.tool_strikes(2)


def ended(code: int | None, err: str = "", out: str = "") -> Ended:
    return Ended(code, out, err, 2.0)


def test_a_command_ends_with_0_or_with_a_message_of_ours() -> None:
    assert unclear("rebuild", ended(0, "Schema everyrun_rebuild: 3 records"), (1,)) == []
    assert unclear("rebuild", ended(1, "everyrun: KafkaConnectionError: no broker"), (1,)) == []
    assert unclear("rebuild", ended(1, "rebuild ━━━ 3/9 records\neveryrun: gone"), (1,)) == []
    wrong = {
        "did not end": ended(None, "rebuild ━━━"),
        "a traceback": ended(1, "Traceback (most recent call last)\nValueError: x"),
        "exit code 2": ended(2, "everyrun: no"),
        "exit code -9": ended(-9),
        "without a message": ended(1, "everyrun: \nsomething"),
    }
    for text, end in wrong.items():
        (problem,) = unclear("rebuild", end, (1,))
        assert text in problem


def test_the_last_words_of_a_command_are_no_progress_bar() -> None:
    assert ended(0, "done: 3\nrebuild ━━━━ 3/3 records\n\n").last == "done: 3"


def test_unsent_inputs_that_stand_still_need_a_reason() -> None:
    still = Standstill()
    stuck = {"WAITING": 400, "PROCESSED": 100}
    assert not still.look(stuck, True, 0.0)
    # What is settled meanwhile moves nothing of what waits.
    assert not still.look({**stuck, "PROCESSED": 120}, True, STILL - 1)
    assert still.look(stuck, True, STILL + 1)
    still.answer("")
    assert not still.look(stuck, True, STILL + 2)
    assert still.look(stuck, True, STILL + 15)
    still.answer("in doubt until 12:00")
    assert still.unexplained == f"stood still for {STILL + 1:.0f} s without a reason: 400 WAITING"


def test_a_part_that_is_away_is_a_reason_and_so_is_a_run_at_extend() -> None:
    still = Standstill()
    for second in range(60):
        assert not still.look({"WAITING": 400}, second % 4 != 0, float(second))
    for second in range(60, 120):
        assert not still.look({"SUBMITTED": 400}, True, float(second))
    for second in range(120, 180):
        assert not still.look({"WAITING": 400 - second}, True, float(second))
    assert still.unexplained == ""


def test_the_reason_is_the_last_column_of_the_submissions_row() -> None:
    listed = (
        "┃ submission ┃ handed in ┃ inputs ┃ held up by            ┃\n"
        "│ sub_1      │ today     │ 400    │                       │\n"
        "│ sub_2      │ today     │ 400    │ calls in doubt, see … │\n"
    )
    assert reason_in(listed, "sub_2") == "calls in doubt, see …"
    assert reason_in(listed, "sub_1") == reason_in(listed, "sub_3") == reason_in("", "sub_1") == ""


def test_rows_are_compared_as_they_are() -> None:
    live = {"results": ["(1,a)", "(2,b)"], "batches": ["(x)"]}
    assert differences(live, {table: list(rows) for table, rows in live.items()}) == []
    (changed,) = differences(live, {**live, "results": ["(1,a)", "(2,c)"]})
    assert changed.startswith("results: 1 rows only live, 1 only rebuilt: (2,b)")
    assert differences(live, {**live, "batches": ["(x)", "(x)"]})
    assert differences(live, {"results": live["results"]})
    assert "nothing was compared" in differences({}, {})[0]


def test_an_archive_that_lacks_or_changes_a_record_is_named() -> None:
    log = {Place("runs", 0, offset): bytes([offset]) for offset in range(3)}
    assert missing(log, {**log, Place("results", 0, 7): b"compacted since"}) == []
    assert "lacks 1 of 3 records of the log, as runs/0@1" in missing(log, {**log, Place("runs", 0, 1): b"x"})[0]
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


def test_an_outcome_is_kept_and_can_be_forgotten(tmp_path: Path) -> None:
    (cell,) = select("bridge/kill")
    assert outcomes.known(tmp_path, cell, 1) is None
    outcomes.keep(tmp_path, an_outcome())
    assert outcomes.known(tmp_path, cell, 1) == an_outcome()
    assert outcomes.known(tmp_path, cell, 2) is None
    outcomes.forget(tmp_path, cell, 1)
    assert outcomes.known(tmp_path, cell, 1) is None


def test_audits_are_kept_beside_the_cells(tmp_path: Path) -> None:
    good, bad = (
        an_outcome(cell="log-of/bridge/kill"),
        an_outcome(cell="log-of/kafka/kill", seed=2, problems=["differs"]),
    )
    for one in (an_outcome(), an_outcome(cell="audit/rebuild"), bad, good):
        outcomes.keep(tmp_path, one)
    assert outcomes.audits(tmp_path) == [good, bad]
    table = outcomes.audits_markdown([good, bad])
    assert "| 1 | 21 s | the tables are what the log says | bridge: kill -9 |" in table
    assert "FAILED: differs" in table


def test_the_tables_go_into_their_parts_of_the_page() -> None:
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


def test_what_was_answered_and_is_not_in_the_log_is_found() -> None:
    truth = [{"run_id": f"run_{n}", "webhooks": {"delivered": n % 2}} for n in range(4)]
    assert unheard(truth, {"run_1", "run_2"}) == ["run_3"]
    assert unpublished({"a": "2", "b": "1", "c": "1"}, {"a": "1", "b": "1"}) == ["a", "c"]


def a_life(pid: int, start: float, until: float, level: float, growth: float) -> list[Sample]:
    """A process that grows by ``growth`` MB a minute once it is warm, and by 50 MB before."""
    chance = random.Random(pid)
    times = [start + 2 * k for k in range(int((until - start) / 2))]
    warming = [50 * min(at - start, WARM) / WARM for at in times]
    noise = [chance.gauss(0, 0.1) for _ in times]
    resident = [level + warm + growth * at / 60 + off for at, warm, off in zip(times, warming, noise, strict=True)]
    return [Sample(at, "bridge", pid, at - start, mb) for at, mb in zip(times, resident, strict=True)]


def test_the_slope_is_that_of_warm_processes_whatever_their_levels() -> None:
    lives = a_life(1, 0, 300, 80, 2.0) + a_life(2, 303, 600, 20, 2.0)
    found = slope(lives)
    assert found is not None
    assert abs(found - 2.0) < 0.1
    flat = slope(a_life(1, 0, 300, 80, 0.0) + a_life(2, 303, 600, 200, 0.0))
    assert flat is not None
    assert abs(flat) < 0.1


def test_too_few_warm_samples_say_nothing() -> None:
    assert slope([]) is None
    assert slope(a_life(1, 0, WARM + 30, 80, 2.0)) is None


def test_a_sparkline_goes_from_least_to_greatest() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([0, 7, 14]) == "▁▄█" or sparkline([0, 7, 14]) == "▁▅█"
    assert sparkline(list(range(600)), width=8) == "▁▂▃▄▅▆▇█"
