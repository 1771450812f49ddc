"""Write results to standard output and everything else to standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NoReturn

import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.table import Column, Table

from everyrun.cli import exits

#: A width in columns that no table reaches. It is used for pipes and files, so that nothing is folded there.
_UNBOUNDED = 1_000_000
#: Maximum number of rows that a command shows as a table.
SHOWN = 200
#: Minimum width of a column that folds.
_LEAST = 12


class _Console(Console):
    """A console that is as wide as its terminal, or of unlimited width if it writes to a pipe or a file."""

    @property
    def size(self) -> ConsoleDimensions:
        """Return the size of the terminal. For a pipe or a file, ignore COLUMNS and return an unlimited width."""
        found = super().size
        return found if self._is_seen() else ConsoleDimensions(_UNBOUNDED, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def _is_seen(self) -> bool:
        try:
            return self.file.isatty()
        except (AttributeError, ValueError):
            return False


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)


@contextmanager
def standard_output() -> Iterator[IO[str]]:
    """Yield standard output, to write data to. Raises OSError if some of the data cannot be written."""
    yield sys.stdout
    sys.stdout.flush()


def folding(name: str = "") -> Column:
    """Return a column that a narrow terminal may fold. Use it for texts, not for ids, states or times."""
    return Column(name, overflow="fold")


def print_table(table: Table, to: Console | None = None) -> None:
    """Print a table. On a narrow terminal, only the folding columns become narrower, so ids are never folded.

    If the other columns alone are wider than the terminal, the lines of the table overflow.
    """
    console = to or out
    needed, unbounded = 1, console.options.update(width=_UNBOUNDED)
    for column in table.columns:
        column.no_wrap = column.overflow != "fold"
        longest = max(
            (console.measure(cell, options=unbounded).maximum for cell in [column.header, *column.cells]), default=0
        )
        column.min_width = longest if column.no_wrap else min(longest, _LEAST)
        needed += column.min_width + 3
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False)


class _OneLine(logging.Formatter):
    def formatException(self, _ei: Any) -> str:  # noqa: N802
        return ""


def log_in_lines() -> None:
    """Write the warnings of libraries to standard error, each on one line and without a traceback.

    For example, asyncpg's pool logs a traceback for each failed attempt to connect. The command itself reports what is
    wrong.
    """
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_OneLine())
    logging.getLogger().addHandler(handler)


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun, in the singular or the plural: "1 row", "2 rows"."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def fail(message: str, code: int = exits.ERROR) -> NoReturn:
    """Print the error and end the command with the exit code."""
    err.print(f"[bold red]everyrun:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def confirm(yes: bool, question: str, nothing: str) -> None:
    """Ask the user to confirm, unless ``yes`` is true. Ends the command if nobody confirms.

    ``nothing`` is the sentence that says so, such as "Nothing was sent".
    """
    if yes:
        return
    if not sys.stdin.isatty():
        fail(f"{nothing}: to confirm, add --yes", exits.USAGE)
    if not typer.confirm(question, err=True):
        err.print(f"{nothing}.")
        raise typer.Exit(exits.ERROR)


def part_event(part: str, what: str, seconds: float) -> None:
    """Print a line about a part of the stack."""
    colour = "green" if what.startswith("ready") else "yellow"
    err.print(f"  {part:<14} [{colour}]{escape(what)}[/]  {seconds:5.1f} s")


def say_unchecked(accepted: dict[str, Any]) -> None:
    """Warn if Extend did not answer whether the workflow, or the batch, exists."""
    if why := accepted.get("workflow_unchecked"):
        text = f"Extend could not be asked whether it has that workflow ({why}); if it has not, the workflow is paused."
        err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    if why := accepted.get("batch_unchecked"):
        text = f"Extend could not be asked whether it has runs of that batch ({why}): its id was not checked."
        err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
