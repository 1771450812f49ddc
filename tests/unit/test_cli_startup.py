"""A command starts quickly: its module is imported when it is called, and heavy libraries when they are used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer

from everyrun.cli.app import app
from everyrun.cli.commands import COMMANDS, load

#: Each takes about as long to import as Typer, or longer.
HEAVY = {
    *("aiokafka", "asyncpg", "faust", "fastapi", "httpx", "markdown_it", "msgspec", "obstore", "prometheus_client"),
    *("pyarrow", "pydantic", "pydantic_settings", "pygments", "uvicorn", "uvloop", "asyncio"),
}


def imported(*calls: list[str], **env: str) -> set[str]:
    """Return the modules that a process has imported after the calls, which all end with 0."""
    code = f"""
import sys
from everyrun.cli.app import app
for call in {list(calls)!r}:
    sys.argv = ["everyrun", *call]
    try:
        app(call)
    except SystemExit as ended:
        assert not ended.code, (call, ended.code)
print(*sys.modules, file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    return set(ended.stderr.split())


def test_the_version_the_help_and_completion_import_no_command() -> None:
    bash = {"_EVERYRUN_COMPLETE": "complete_bash", "COMP_WORDS": "everyrun re", "COMP_CWORD": "1"}
    zsh = {"_EVERYRUN_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "everyrun re"}
    for modules in (imported(["--version"], ["--help"]), imported([], **bash), imported([], **zsh)):
        own = {name for name in modules if name.startswith("everyrun.")}
        assert own == {
            "everyrun.cli",
            "everyrun.cli.app",
            "everyrun.cli.commands",
            "everyrun.cli.exits",
            "everyrun.errors",
        }
        assert modules.isdisjoint(HEAVY | {"rich.console"})


def test_the_help_of_every_command_imports_nothing_heavy() -> None:
    calls = []
    for name in COMMANDS:
        calls += [[name, "--help"], *([name, inner, "--help"] for inner in getattr(load(name), "commands", {}))]
    assert len(calls) > 40
    assert imported(*calls).isdisjoint(HEAVY)


def test_completion_of_an_option_imports_nothing_heavy() -> None:
    for words in ("everyrun submit --de", "everyrun doubt show --", "everyrun archive ver"):
        env = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert imported([], _EVERYRUN_COMPLETE="complete_bash", **env).isdisjoint(HEAVY), words


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_itself_says(name: str) -> None:
    command = load(name)
    assert (command.help or "").split("\n")[0] == COMMANDS[name].help
    assert typer.main.get_command(app).commands[name].name == name
