"""A list of runs that does not end is detected, in constant memory."""

from __future__ import annotations

from everyrun.extend.run_lists import NO_PROGRESS, EndlessListDetector


def test_repeating_tokens_are_detected_within_three_cycles() -> None:
    endless = EndlessListDetector()
    cycle = 7
    problems = (endless.problem([f"r-{page}"], f"t-{page % cycle}") for page in range(1000))
    pages, problem = next((page, problem) for page, problem in enumerate(problems) if problem)
    assert problem == "a page token repeats"
    assert pages <= 3 * cycle


def test_repeating_runs_are_detected_though_tokens_are_new() -> None:
    endless = EndlessListDetector()
    problems = [endless.problem(["r-1", "r-2"], f"t-{page}") for page in range(NO_PROGRESS + 1)]
    assert problems[:-1] == [None] * NO_PROGRESS
    assert problems[-1] == f"{NO_PROGRESS} pages in a row have no new run"


def test_long_list_with_moving_runs_and_empty_pages_is_not_endless() -> None:
    endless = EndlessListDetector()
    for page in range(3000):
        # Each page repeats half of the page before, and some pages are empty.
        runs = [f"r-{number}" for number in range(page * 50, page * 50 + 100)] if page % 7 else []
        assert endless.problem(runs, f"t-{page}") is None
    assert len(endless._shown) == 2 << 20
    assert NO_PROGRESS > 2
