"""Tables: whole in a pipe; on a terminal texts fold, and ids are neither folded nor cut."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from everyrun.cli.console import _Console, folding, print_table

RUN = "workflow_run_0123456789abcdefghijklmnop"
WHY = "the document has no text and no page that could be read " * 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(file: io.StringIO) -> list[str]:
    table = Table("id", "status", "run", folding("reason"))
    table.add_row("img/000.jpg", "NEEDS_REVIEW", RUN, WHY)
    console = _Console(file=file, highlight=False)
    console._color_system = None
    print_table(table, console)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", ["20", "80", "120"])
def test_on_a_terminal_only_texts_fold(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    lines = printed(Terminal())
    (row,) = [line for line in lines if RUN in line]
    assert "img/000.jpg" in row
    assert "NEEDS_REVIEW" in row
    words = " ".join(line.split("│")[-2] for line in lines if "│" in line).split()
    assert "".join(words) == "".join(WHY.split())


def test_in_a_pipe_nothing_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    (row,) = [line for line in printed(io.StringIO()) if RUN in line]
    assert WHY.strip() in row
