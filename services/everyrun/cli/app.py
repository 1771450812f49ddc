"""Run the console script ``everyrun``. Each command has a module of its own, imported when the command is called."""
# ruff: noqa: E402

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, NoReturn


def _end_quietly(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Report an error that nothing caught, but not Ctrl-C: the imports of a command take long enough for one."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


# Before the first import that takes time. Python itself then ends the process by SIGINT, which shells show as 130.
if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _end_quietly

import typer

from everyrun import __version__
from everyrun.cli import exits
from everyrun.cli.commands import LazyGroup
from everyrun.errors import EveryrunError

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    help="Every run accounted for: send documents to Extend in bulk and know what became of every single one.",
    epilog=exits.HELP,
    pretty_exceptions_enable=False,
    # Rich's help imports its Markdown and its tracebacks, which takes longer than everything else together.
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"everyrun {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    from everyrun.cli.console import log_in_lines

    log_in_lines()


def main() -> None:
    """Run the command line. An error ends it with a line on standard error, never with a traceback."""
    try:
        _write_utf8()
        app()
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
    except OSError as error:
        # A full disk or a file that was removed. Commands report all other errors themselves.
        where = f"{error.filename}: " if error.filename else ""
        _drop_output()
        _end(where + (error.strerror or str(error)))
    except EveryrunError as error:
        _end(str(error), exits.of(error))
    except Exception as error:
        # Nobody foresaw this error. Its text may hold what a library was given.
        hint = "EVERYRUN_LOG_LEVEL=debug shows where it happened"
        _end(f"an unexpected error: {type(error).__name__}: {error}. {hint}", trace=True)


def _write_utf8() -> None:
    """Write UTF-8 to a pipe or a file, whatever the locale is; a lone surrogate is written as its escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def _end(problem: str, code: int = exits.ERROR, *, trace: bool = False) -> NoReturn:
    import traceback

    from rich.markup import escape

    from everyrun.cli.console import err
    from everyrun.redact import redact

    err.print(f"[bold red]everyrun:[/] {escape(redact(problem))}", soft_wrap=True)
    if trace and os.environ.get("EVERYRUN_LOG_LEVEL") == "debug":
        err.print(redact(traceback.format_exc()), markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _drop_output() -> None:
    """Drop unwritten output, so that the interpreter does not try to write it at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
