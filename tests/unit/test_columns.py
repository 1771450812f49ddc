"""Escaping of exported cells: no cell is a formula, and every text is restored."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everyrun.cli.results import CSV_COLUMNS, csv_row
from everyrun.submission.intake.columns import Options, csv_line, escape, unescape
from everyrun.submission.intake.parse import CSV, RowReader
from tests.unit.test_cli_results import results, table

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d")
#: Texts of relevant characters: apostrophes, starts of formulas, digits, quotes and delimiters.
TEXTS = st.text(st.sampled_from("'=+-@\t\r\n1.5eE\",; aü"), max_size=6)


@given(TEXTS)
def test_escaping_is_reversible_and_leaves_no_formula(text: str) -> None:
    cell = escape(text)
    assert unescape(cell) == text
    assert not cell.startswith(FORMULAS) or float(cell) < 0


@pytest.mark.parametrize("number", ["-12.5", "-0", "1e5", "-3.4E-7", "0.25"])
def test_numbers_stay_numbers(number: str) -> None:
    assert escape(number) == number == unescape(number)
    assert unescape("'" + number) == "'" + number


IDS = st.text(st.sampled_from("'=+-@1aü"), min_size=1, max_size=5)


@given(st.lists(st.tuples(IDS, TEXTS, TEXTS), min_size=1, max_size=4))
def test_exported_results_are_read_as_submitted(given_rows: list[tuple[str, str, str]]) -> None:
    """Write with `results --format csv` and read with `submit`."""
    submitted = [
        {"id": identifier, "file": {"text": "=" + text, **({"name": name} if name else {})}, "metadata": {"n": 1}}
        for identifier, text, name in given_rows
    ]
    exported = csv_line(CSV_COLUMNS)
    for row in submitted:
        found: dict[str, Any] = {"external_id": row["id"], "file": row["file"], "metadata": row["metadata"]}
        exported += csv_line(csv_row({**found, "status": "FAILED", "failure_message": "=1+1"}))
    assert [value for _, value in RowReader(CSV, io.BytesIO(exported.encode()), Options())] == submitted


def test_cells_of_other_manifests_are_not_unescaped() -> None:
    ((_, row),) = RowReader(CSV, io.BytesIO(b"id,text,note\n'=1,'+2,'@3\n"), Options())
    assert row == {"id": "'=1", "file": {"text": "'+2"}, "metadata": {"note": "'@3"}}


@pytest.mark.parametrize("extracted", [[], ["--extracted"]])
def test_the_results_command_writes_no_formula(extracted: list[str]) -> None:
    step = {"step": {"name": "=A1"}, "result": {"extractRun": {"output": {"value": {"sum": -5, "who": "@x"}}}}}
    row = {"external_id": '=HYPERLINK("x")', "status": "FAILED", "failure_message": "+1", "run": {"stepRuns": [step]}}
    done = results("--format", "csv", *extracted, rows=[row])
    (shown,) = table(done.stdout)
    assert (shown["id"], shown["failure_message"]) == ('\'=HYPERLINK("x")', "'+1")
    if extracted:
        assert (shown["'=A1.sum"], shown["'=A1.who"]) == ("-5", "'@x")
