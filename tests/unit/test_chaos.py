"""The parts of the chaos and soak runs that decide: which cells, what is kept, what is wrong, what grows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chaos.cells import ALL, MATRIX, NoSuchCellError, select
from chaos.memory import WARM, Sample, slope, sparkline
from chaos.outcomes import Outcome
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
    good, bad = an_outcome(cell="audit/bridge/kill"), an_outcome(cell="audit/kafka/kill", seed=2, problems=["differs"])
    for one in (an_outcome(), bad, good):
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
