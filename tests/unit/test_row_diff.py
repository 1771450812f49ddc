"""Differences of rows."""

from __future__ import annotations

from everyrun.replay.audit.row_diff import Difference, rows_differ


def test_equal_rows_do_not_differ() -> None:
    row = {"status": "PROCESSED", "run": b'{"usage": {"credits": 2}}'}
    assert list(rows_differ("results", "i", row, {**row, "run": b'{"usage":{"credits":2}}'})) == []


def test_a_difference_has_its_path_into_json() -> None:
    live = {"run": b'{"steps": [{"status": "A"}], "extra": 1}', "credits": 2}
    log = {"run": b'{"steps": [{"status": "B"}, {}]}', "credits": 2.0}
    assert [(d.column, d.live, d.log) for d in rows_differ("results", "i", live, log)] == [
        ("run.steps[0].status", "A", "B"),
        ("run.steps[1]", "(absent)", {}),
        ("run.extra", 1, "(absent)"),
        ("credits", 2, 2.0),
    ]


def test_a_row_on_one_side_is_one_difference() -> None:
    assert list(rows_differ("results", "i", {"status": "X"}, None)) == [Difference("results", "i", "*", "a row", None)]
    assert list(rows_differ("results", "i", None, {"status": "X"})) == [Difference("results", "i", "*", None, "a row")]
