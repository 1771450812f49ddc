"""Where commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from everyrun.cli import exits

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _OneLine(logging.Formatter):
    def formatException(self, _ei: Any) -> str:  # noqa: N802
        return ""


def log_in_lines() -> None:
    """Write the warnings of libraries to standard error, a line each, without tracebacks.

    asyncpg's pool logs one for each attempt to reach a Postgres that is away. The command itself says what is wrong.
    """
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_OneLine())
    logging.getLogger().addHandler(handler)


def fail(message: str, code: int = exits.ERROR) -> NoReturn:
    """Say what is wrong and end with the code."""
    err.print(f"[bold red]everyrun:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def part_event(part: str, what: str, seconds: float) -> None:
    """One line for a part of the stack."""
    colour = "green" if what.startswith("ready") else "yellow"
    err.print(f"  {part:<14} [{colour}]{escape(what)}[/]  {seconds:5.1f} s")
