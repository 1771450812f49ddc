"""One process of the stack: started, watched, started again with a backoff, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from everyrun.embedded import process

OnEvent = Callable[[str, str, float], None]
"""Told of (part, what happened, seconds)."""

_FIRST_BACKOFF, _MOST_BACKOFF = 0.5, 10.0
#: After so many seconds of life a part that dies again is started again at once.
_STEADY = 30.0
_LOG_MAX = 10 << 20


class Part:
    """A process that the stack owns. ``ready`` is asked until it answers true; ``port`` is for showing."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        folder: Path,
        port: int,
        ready: Callable[[], Awaitable[bool]],
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.port = port
        self.log = folder / "logs" / f"{name}.log"
        self.restarts = 0
        self.state = "stopped"
        self.since = time.time()
        self._command = command
        self._env = {**os.environ, **(env or {})}
        self._user = user
        self._cwd = cwd
        self._ready = ready
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process. From the main thread: the kernel ends it with the thread that started it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        self._process = process.start(self._command, log=self.log, env=self._env, user=self._user, cwd=self._cwd)
        self._set("starting")

    def _set(self, state: str) -> None:
        self.state, self.since = state, time.time()

    async def wait_ready(self, within: float) -> None:
        """Return when it is ready. Raises TimeoutError, or ChildProcessError where it ended, with its last words."""
        deadline = time.monotonic() + within
        while not await self._ready():
            if self.pid is None:
                raise ChildProcessError(f"{self.name} ended at its start. Its last words:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is not ready after {within:.0f} s. Its last words:\n{self.tail()}")
            await asyncio.sleep(0.05)
        self._set("ready")

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(nothing)"

    async def watch(self, on_event: OnEvent) -> None:
        """Start it again whenever it dies, for ever."""
        backoff = _FIRST_BACKOFF
        while True:
            started = time.monotonic()
            while self.pid is not None:
                await asyncio.sleep(0.1)
            if time.monotonic() - started > _STEADY:
                backoff = _FIRST_BACKOFF
            self._set("died")
            on_event(self.name, f"died (status {self._status()}); starting again in {backoff:.1f} s", backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MOST_BACKOFF)
            began = time.monotonic()
            self.restarts += 1
            self.start()
            try:
                await self.wait_ready(60)
                on_event(self.name, "ready again", time.monotonic() - began)
            except (ChildProcessError, TimeoutError):
                on_event(self.name, "is not ready yet", time.monotonic() - began)

    def _status(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    async def stop(self, within: float) -> None:
        """Ask it to end; make it end when it has not after ``within`` seconds."""
        if self._process is None:
            return
        deadline = time.monotonic() + within
        if self.pid is not None:
            self._process.send_signal(self._stop_signal)
        while self.pid is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        process.signal_group(self._process, signal.SIGKILL)
        self._process.wait()
        self._set("stopped")
