"""The start of the command line: processor time of ``everyrun``, beside the bare imports of Typer and Rich."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

_CALLS = {
    "everyrun --version": ["--version"],
    "everyrun --help": ["--help"],
    "everyrun submit --help": ["submit", "--help"],
    "everyrun doubt show --help": ["doubt", "show", "--help"],
}
_COMPLETION = {"_EVERYRUN_COMPLETE": "complete_bash", "COMP_WORDS": "everyrun submit --de", "COMP_CWORD": "2"}
_MAIN = ["-c", "from everyrun.cli.app import main; main()"]
#: The name of the program names the variable by which a shell asks for completion.
_AS_EVERYRUN = f"import sys; sys.argv = ['everyrun']; {_MAIN[1]}"
_TIMES = 7


async def run() -> list[tuple[str, ...]]:
    bare = _seconds(["-c", "import typer, rich"])
    figures = {name: _seconds([*_MAIN, *arguments]) for name, arguments in _CALLS.items()}
    figures["completion of an option"] = _seconds(["-c", _AS_EVERYRUN], _COMPLETION)
    ceiling = f"{bare:.2f} s, import typer, rich"
    return [(name, f"{seconds:.2f} s", ceiling, f"{seconds / bare:.1f}", "0.3 s") for name, seconds in figures.items()]


def _seconds(arguments: list[str], env: dict[str, str] | None = None) -> float:
    """Return the least processor time of several runs."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, *arguments]
        subprocess.run(command, env={**os.environ, **(env or {})}, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(_TIMES))
