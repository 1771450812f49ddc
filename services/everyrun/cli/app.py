"""``everyrun``: the commands, each from a module of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

import typer
from rich.markup import escape

from everyrun import __version__
from everyrun.cli import (
    archive,
    as_of,
    audit,
    demo,
    doctor,
    doubt,
    exits,
    history,
    overdue,
    pause,
    provision,
    quarantine,
    rebuild,
    register,
    replay,
    results,
    stack,
    submit,
    token,
    unmatched,
    watch,
)
from everyrun.cli.console import err, log_in_lines, write_utf8
from everyrun.errors import EveryrunError
from everyrun.redact import redact

app = typer.Typer(
    no_args_is_help=True,
    help="Every run accounted for: send documents to Extend in bulk and know what became of every single one.",
    epilog=exits.HELP,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"everyrun {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    pass


stack.register(app)
doctor.register(app)
demo.register(app)
submit.register(app)
register.register(app)
watch.register(app)
results.register(app)
overdue.register(app)
unmatched.register(app)
doubt.register(app)
pause.register(app)
quarantine.register(app)
provision.register(app)
token.register(app)
rebuild.register(app)
audit.register(app)
as_of.register(app)
archive.register(app)
replay.register(app)
history.register(app)


def main() -> None:
    """The console script."""
    write_utf8()
    log_in_lines()
    try:
        app()
    except OSError as error:
        # A full disk, or a file that went meanwhile: of everything else a command speaks itself.
        place = f"{error.filename}: " if error.filename else ""
        _say(place + (error.strerror or str(error)))
        _drop_output()
        sys.exit(exits.ERROR)
    except EveryrunError as error:
        _say(str(error))
        sys.exit(exits.of(error))
    except Exception as error:
        # Nobody thought of this error. Its text may hold what a library was given.
        _say(f"an unexpected error: {type(error).__name__}: {error}. EVERYRUN_LOG_LEVEL=debug shows where it was")
        if os.environ.get("EVERYRUN_LOG_LEVEL") == "debug":
            err.print(redact(traceback.format_exc()), markup=False, highlight=False, soft_wrap=True)
        sys.exit(exits.ERROR)


def _say(problem: str) -> None:
    err.print(f"[bold red]everyrun:[/] {escape(redact(problem))}", soft_wrap=True)


def _drop_output() -> None:
    """Drop what standard output did not take, so that the interpreter does not try once more at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
