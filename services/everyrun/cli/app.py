"""Run the console script ``everyrun``. A command's module is imported only when the command is called."""
# ruff: noqa: E402

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, NoReturn


def _end_quietly(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print the traceback of an uncaught error, but print nothing for Ctrl-C.

    The imports of a command take a while, so a user may press Ctrl-C during them.
    """
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


# Set the hook before the first slow import. After the hook has run, Python ends the process with SIGINT. Shells show
# this as exit code 130.
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
    # Without this, Typer would import Rich's modules for Markdown and tracebacks whenever it shows help. This import
    # takes longer than all others together.
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
    """Run the command line. If an error ends the command, print one line about the error on standard error.

    The traceback of an unexpected error is printed only if EVERYRUN_LOG_LEVEL is debug.
    """
    try:
        _write_utf8()
        app()
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
    except OSError as error:
        # For example, the disk is full or a file was removed. A command that expects such an error reports the error
        # itself.
        where = f"{error.filename}: " if error.filename else ""
        _drop_output()
        _end(where + (error.strerror or str(error)))
    except EveryrunError as error:
        _end(str(error), exits.of(error))
    except Exception as error:
        # This error was not expected. Its text may contain secrets that were passed to a library; _end redacts them.
        hint = "EVERYRUN_LOG_LEVEL=debug shows where it happened"
        _end(f"an unexpected error: {type(error).__name__}: {error}. {hint}", trace=True)


def _write_utf8() -> None:
    """In every locale, use UTF-8 for output to a pipe or a file.

    Characters that cannot be encoded, such as lone surrogates, are written as escapes.
    """
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
    """Send unwritten output to /dev/null, so that the interpreter does not fail again when it flushes at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
