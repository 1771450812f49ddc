"""Run the emulator as a real process, and a small server that receives its webhooks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from everyrun.serve import http_server, respond
from tests.conftest import free_port

KEY = "sk_test"
WORKFLOW = "workflow_test"


class EmulatorProcess:
    """An emulator with its own port and folder; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._options = options
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "everyrun.emulator", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--state-dir", str(self._folder), "--api-key", KEY, "--workflow-id", WORKFLOW, *self._options]
        with (self._folder.parent / f"emulator-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(self.url + "/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, "the emulator ended"
            assert time.monotonic() < deadline, "the emulator is not ready"
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def truth(self) -> list[dict]:
        import json

        text = httpx.get(self.url + "/_emulator/truth").text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def emulator_with(tmp_path: Path) -> Iterator[Callable[..., EmulatorProcess]]:
    """Return a function that starts an emulator with the given options."""
    started: list[EmulatorProcess] = []

    def start(*options: str) -> EmulatorProcess:
        started.append(EmulatorProcess(tmp_path / f"state{len(started)}", *options))
        return started[-1]

    (tmp_path / "state0").mkdir(parents=True)
    yield start
    for emulator in started:
        emulator.kill()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """An emulator without faults whose runs take less than a second."""
    folder = tmp_path_factory.mktemp("emulator") / "state"
    running = EmulatorProcess(folder, "--run-seconds", "0.05:0.2")
    yield running
    running.kill()


class Inbox:
    """The deliveries received, as (headers, raw body). Each is answered with ``status``, or as ``judge`` decides."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.judge: Callable[[dict[str, str], bytes], int] = lambda _headers, _body: self.status
        self.deliveries: list[tuple[dict[str, str], bytes]] = []


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    """A server that receives webhooks."""
    box = Inbox()
    port = free_port()
    box.url = f"http://127.0.0.1:{port}/hook"

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        box.deliveries.append((headers, body))
        await respond(send, box.judge(headers, body), b"{}")

    async with http_server(f"127.0.0.1:{port}", app):
        yield box
        await asyncio.sleep(0)
