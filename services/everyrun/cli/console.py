"""Where commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from everyrun.cli import exits

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(message: str, code: int = exits.ERROR) -> NoReturn:
    """Say what is wrong and end with the code."""
    err.print(f"[bold red]everyrun:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def part_event(part: str, what: str, seconds: float) -> None:
    """One line for a part of the stack."""
    colour = "green" if what.startswith("ready") else "yellow"
    err.print(f"  {part:<14} [{colour}]{escape(what)}[/]  {seconds:5.1f} s")
