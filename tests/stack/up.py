"""Run ``everyrun up`` as a process of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from everyrun.embedded.state import read_endpoints, read_status

EVERYRUN = [sys.executable, "-c", "from everyrun.cli.app import main; main()"]


def environment(**more: str) -> dict[str, str]:
    """Return the environment without settings of Everyrun, plus ``more``."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("EVERYRUN_", "EXTEND_"))}
    return {**plain, "COLUMNS": "200", **more}


def everyrun(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends."""
    command = [*EVERYRUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(**env), check=False)


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def is_gone(process: psutil.Process) -> bool:
    """Return True if the process has ended; a zombie counts as ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Up:
    """A running ``everyrun up`` that inherits SIGINT as ignored, like the background jobs of a shell."""

    def __init__(self, folder: Path, *flags: str, **env: str) -> None:
        self.folder = folder
        self.console = folder.with_suffix(".console")
        with self.console.open("ab") as output:
            self.process = subprocess.Popen(
                [*EVERYRUN, "up", "--data-dir", str(folder), *flags],
                stdout=output,
                stderr=output,
                env=environment(**env),
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )

    def until_ready(self, seconds: float = 180) -> float:
        """Wait until the stack is ready; return how many seconds it took."""
        began = time.monotonic()

        def ready() -> bool:
            assert self.process.poll() is None, self.output()
            return read_endpoints(self.folder) is not None

        wait_for(ready, f"the stack is ready: {self.output()}", seconds)
        return time.monotonic() - began

    def output(self) -> str:
        return self.console.read_text()

    def pids(self) -> dict[str, int]:
        return {row["part"]: row["pid"] for row in read_status(self.folder)}

    def everything(self) -> list[psutil.Process]:
        """Return the process of the stack and all its descendants."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
