"""Each command's help has an example that the command accepts, and fits a screen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from everyrun.cli.app import app

#: Lines of a help text on a terminal of 100 columns. The commands that read manifests have nineteen options.
LINES, MANIFEST_LINES = 34, 46
_REDIRECTION = re.compile(r"\s[|>].*")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command that can be run, with its words."""
    inner = getattr(command, "commands", None)
    if inner is None or command.invoke_without_command:
        yield path, command
    for name, one in (inner or {}).items():
        yield from commands(one, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))
every = pytest.mark.parametrize("path", ALL, ids=" ".join)


def examples(command: Any) -> list[list[str]]:
    """Return the words of each example, without settings before it and redirections after it."""
    lines = re.findall(r"^Example: (.*(?:\n(?!\n).*)*)", command.help or "", re.MULTILINE)
    calls = [re.sub(r"^(\w+=\S+ )+", "", _REDIRECTION.sub("", line.replace("\n", " "))) for line in lines]
    return [shlex.split(call) for call in calls]


@every
def test_the_help_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    found = examples(ALL[path])
    assert found
    for words in found:
        assert tuple(words[: len(path) + 1]) == ("everyrun", *path)
        # Converts and checks every argument, and runs nothing.
        ALL[path].make_context(" ".join(words[: len(path) + 1]), words[len(path) + 1 :])


@every
def test_the_help_fits_a_screen_and_begins_with_a_verb(path: tuple[str, ...]) -> None:
    context = ALL[path].make_context(" ".join(("everyrun", *path)), [], resilient_parsing=True, terminal_width=98)
    lines = context.get_help().splitlines()
    has_manifest = any(param.name == "delimiter" for param in ALL[path].params)
    assert len(lines) <= (MANIFEST_LINES if has_manifest else LINES), "\n".join(lines)
    first = (ALL[path].help or "").split()[0]
    assert re.fullmatch(r"[A-Z][a-z]+", first)
    assert not first.endswith(("s", "ing")), first
