"""Read the option ``--where``, which several commands have, into parameters of the query API."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

import typer

from everyrun.cli import exits
from everyrun.cli.console import fail

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="NAME=VALUE",
        help="Only inputs that fit, for example metadata.invoice=A-17, failure_reason=TIMEOUT, text=acme or "
        "settled_since=2026-03-03; can be repeated.",
    ),
]


def read_where(given: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the filters as parameters of the query API. Ends the command if one has a name that does not exist."""
    if not given:
        return {}
    from everyrun.query.filters import METADATA, NAMES

    # The submission is an argument of its own.
    known = [name for name in NAMES if name != "submission_id"]
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            fail(f"--where {text}: write NAME=VALUE, for example metadata.invoice=A-17", exits.USAGE)
        if name not in known and not (name.startswith(METADATA) and name != METADATA):
            near = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"the filters are: {', '.join(known)}, and metadata.FIELD"
            fail(f"--where {text}: there is no filter {name!r}; {hint}", exits.USAGE)
        found.setdefault(name, []).append(value)
    return found
