"""Run ``everyrun`` commands against a stage, and judge how they end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Collection
from typing import NamedTuple

from chaos.stage import Stage

_COMMAND = (sys.executable, "-c", "from everyrun.cli.app import main; main()")
#: A command that has not ended after this many seconds hangs.
WITHIN = 300.0


class Ended(NamedTuple):
    """Describes how a command ended: exit code (None if it hung and was killed), outputs, and duration in seconds."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line on standard error that is not a progress bar."""
        return next((line.strip() for line in reversed(self.err.splitlines()) if line.strip() and "━" not in line), "")


class RunningCommand:
    """A command that has been started."""

    def __init__(self, stage: Stage, command: tuple[str, ...], process: asyncio.subprocess.Process) -> None:
        self._stage = stage
        self._command = command
        self._process = process
        self._began = time.monotonic()
        self._ending = asyncio.create_task(process.communicate())

    @classmethod
    async def start(cls, stage: Stage, *command: str) -> RunningCommand:
        """Start ``everyrun COMMAND`` on the stage's stack."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *command,
            env={**os.environ, "EVERYRUN_DATA_DIR": str(stage.stack.data_dir), "COLUMNS": "200"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(stage, command, process)

    async def ends_within(self, seconds: float) -> bool:
        """Return True as soon as the command has ended, or False after ``seconds``."""
        done, _ = await asyncio.wait({self._ending}, timeout=seconds)
        return bool(done)

    def kill(self) -> None:
        """Kill the command with -9, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self, within: float = WITHIN) -> Ended:
        """Wait until the command has ended. Kill it if it takes too long, or if this call is cancelled."""
        try:
            hung = not await self.ends_within(within)
        finally:
            # Leave no process behind, whatever happens here.
            self.kill()
        out, err = (text.decode("utf-8", "replace") for text in await self._ending)
        code = None if hung else self._process.returncode
        if code != 0:
            self._stage.notes.append(
                f"everyrun {' '.join(self._command)}: exit code {code}\n{out[-1000:]}{err[-6000:]}"
            )
        return Ended(code, out, err, time.monotonic() - self._began)


async def everyrun(stage: Stage, *command: str, within: float = WITHIN) -> Ended:
    """Run a command until it ends."""
    return await (await RunningCommand.start(stage, *command)).ended(within)


def problems_of_end(name: str, ended: Ended, errors: Collection[int]) -> list[str]:
    """Return what is wrong with how a command ended. Pure.

    It may end with 0, or with one of the exit codes ``errors`` and a message that begins with ``everyrun:``. It must
    not hang, be killed, or show a traceback.
    """
    if ended.code is None:
        return [f"{name}: did not end within {ended.seconds:.0f} s; its last line: {ended.last}"]
    if "Traceback (most recent call last)" in ended.err + ended.out or "╭─" in ended.err:
        return [f"{name}: ended with a traceback: {ended.last}"]
    if ended.code == 0:
        return []
    if ended.code not in errors:
        return [f"{name}: exit code {ended.code}: {ended.last}"]
    messages = [line.partition("everyrun:")[2] for line in ended.err.splitlines() if line.startswith("everyrun:")]
    if not any(text.strip() for text in messages):
        return [f"{name}: exit code {ended.code} without a message: {ended.last}"]
    return []
