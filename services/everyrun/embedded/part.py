"""Start, watch, restart and stop one process of the stack."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from everyrun.embedded import process

OnEvent = Callable[[str, str, float], None]
"""A function that is called with the name of a part, what happened to the part, and a number of seconds.

The number belongs to the event: for example, the delay before a restart, or the time until the part was ready.
"""

Ask = Callable[[], Awaitable[str | None]]
"""A function that checks a part. Returns None if the part is ready, otherwise what the part waits for."""

#: Seconds within which a part must be ready after its start.
READY_WITHIN = 60.0
#: Seconds before the first restart of a part that died. The delay doubles with each further restart.
_FIRST_BACKOFF = 0.5
#: If a part ran for more than this many seconds before it died, the delay is _FIRST_BACKOFF again.
_STEADY = 30.0
#: Size in bytes above which a part's log is renamed when the part starts.
_LOG_MAX = 10 << 20


class Part:
    """A process of the stack. ``ask`` checks its readiness; ``port`` and ``url`` are for ``everyrun status``."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        folder: Path,
        port: int,
        ask: Ask,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        most_backoff: float = 10.0,
    ) -> None:
        self.name = name
        self.port = port
        self.log = folder / "logs" / f"{name}.log"
        self.restarts = 0
        self.state = "stopped"
        self.since = time.time()
        self._url = url
        self._command = command
        self._env = {**os.environ, **(env or {})}
        self._user = user
        self._cwd = cwd or folder
        self._ask = ask
        self._stop_signal = stop_signal
        self._most_backoff = most_backoff
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id while the process runs, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def row(self) -> dict[str, Any]:
        """Return the part's row for ``everyrun status``."""
        return {
            "part": self.name,
            "state": self.state,
            "pid": self.pid,
            "port": self.port,
            "since": self.since,
            "restarts": self.restarts,
            "url": self._url,
        }

    def start(self) -> None:
        """Start the process. Call this in the main thread: the kernel kills the process when the thread ends."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        self._process = process.start(self._command, log=self.log, env=self._env, user=self._user, cwd=self._cwd)
        self._set("starting")

    def _set(self, state: str) -> None:
        self.state, self.since = state, time.time()

    async def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Wait until the part is ready.

        Raises TimeoutError after ``within`` seconds, and ChildProcessError if the process ends.
        """
        deadline = time.monotonic() + within
        while (reason := await self._ask()) is not None:
            if self.pid is None:
                raise ChildProcessError(f"{self.name} ended during its start. The end of its log:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.name} is not ready after {within:.0f} s: {reason}. The end of its log:\n{self.tail()}"
                )
            await asyncio.sleep(0.05)
        self._set("ready")

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the part's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(nothing)"

    async def watch(self, on_event: OnEvent) -> None:
        """Restart the process whenever it dies. Never returns."""
        backoff = _FIRST_BACKOFF
        while True:
            began = time.monotonic()
            while self.pid is not None:
                await asyncio.sleep(0.1)
            if time.monotonic() - began > _STEADY:
                backoff = _FIRST_BACKOFF
            self._set("died")
            if self._process is not None:
                process.signal_group(self._process, signal.SIGKILL)
            on_event(self.name, f"died (status {self._status()}); restarting in {backoff:.1f} s", backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, self._most_backoff)
            self.restarts += 1
            try:
                self.start()
            except OSError as error:
                on_event(self.name, f"cannot be started: {error}", backoff)
                continue
            await self._ready_again(on_event)

    async def _ready_again(self, on_event: OnEvent) -> None:
        """Wait until the part is ready or has died again, however long it takes."""
        began = time.monotonic()
        while True:
            try:
                await self.wait_ready()
            except TimeoutError:
                on_event(self.name, "is not ready yet", time.monotonic() - began)
            except ChildProcessError:
                return
            else:
                on_event(self.name, "ready again", time.monotonic() - began)
                return

    def _status(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    async def stop(self, within: float) -> None:
        """Ask the process to end, and kill it if it has not ended after ``within`` seconds."""
        if self._process is not None and self.pid is not None:
            deadline = time.monotonic() + within
            self._process.send_signal(self._stop_signal)
            while self.pid is not None and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            process.signal_group(self._process, signal.SIGKILL)
            self._process.wait()
        self._set("stopped")
