"""``everyrun``: the commands, each from a module of its own."""

from __future__ import annotations

import traceback

import typer

from everyrun import __version__
from everyrun.cli import (
    archive,
    asof,
    audit,
    decide,
    demo,
    doctor,
    doubt,
    exits,
    history,
    overdue,
    prepare,
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
from everyrun.cli.console import log_in_lines
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
decide.register(app)
quarantine.register(app)
prepare.register(app)
token.register(app)
rebuild.register(app)
audit.register(app)
asof.register(app)
archive.register(app)
replay.register(app)
history.register(app)


def main() -> None:
    """The console script."""
    log_in_lines()
    try:
        app()
    except Exception:
        # Nobody thought of this error. Its text may hold what a library was given.
        typer.echo(redact(traceback.format_exc()), err=True)
        raise SystemExit(exits.ERROR) from None
