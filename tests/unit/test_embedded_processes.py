"""Processes that end with their parent; parts that are started again; with real processes and real kills."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everyrun.embedded import part as part_module
from everyrun.embedded.part import Part
from everyrun.embedded.postgres import EmbeddedPostgres
from everyrun.embedded.process import working_in
from tests.conftest import eventually

PARENT = """
import os, sys, time
from pathlib import Path
from everyrun.embedded import process
child = process.start(["sleep", "600"], log=Path(sys.argv[1]), env=os.environ, user=sys.argv[2] or None, cwd=Path("/"))
print(child.pid, flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    """Return True if a process runs. A zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "user", ["", pytest.param("nobody", marks=pytest.mark.skipif(os.geteuid() != 0, reason="root"))]
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_child_ends_with_its_parent_however_that_ends(
    tmp_path: Path, user: str, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), user]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert runs(child)
    if user:
        assert Path(f"/proc/{child}").stat().st_uid != 0
    parent.send_signal(number)
    parent.wait()
    await eventually(lambda: not runs(child), "the child has ended", 5)


class Asked:
    """Says that a part is ready, or not."""

    reason: str | None = None

    async def __call__(self) -> str | None:
        return self.reason


def a_part(folder: Path, script: str, asked: Asked | None = None) -> Part:
    return Part("thing", ["bash", "-c", script], folder=folder, port=1, ask=asked or Asked(), most_backoff=0.08)


async def test_a_part_that_ends_at_its_start_tells_its_last_words(tmp_path: Path) -> None:
    asked = Asked()
    asked.reason = "it does not listen yet"
    part = a_part(tmp_path, "echo cannot read my settings >&2; exit 3", asked)
    part.start()
    with pytest.raises(ChildProcessError, match="cannot read my settings"):
        await part.wait_ready(10)


async def test_a_part_that_does_not_get_ready_tells_what_is_in_the_way(tmp_path: Path) -> None:
    asked = Asked()
    asked.reason = '{"database":"starting"}'
    part = a_part(tmp_path, "sleep 600", asked)
    part.start()
    try:
        with pytest.raises(TimeoutError, match="database"):
            await part.wait_ready(0.2)
    finally:
        await part.stop(1)


async def test_a_part_that_dies_is_started_again_later_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "_FIRST_BACKOFF", 0.02)
    part = a_part(tmp_path, "exit 1")
    part.start()
    waits: list[float] = []
    watching = asyncio.create_task(
        part.watch(lambda _part, what, seconds: waits.append(seconds) if what.startswith("died") else None)
    )
    await eventually(lambda: len(waits) >= 5, "it died five times", 20)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await part.stop(1)
    assert waits[:5] == [0.02, 0.04, 0.08, 0.08, 0.08]
    assert part.restarts >= 4


async def test_a_part_that_does_not_heed_sigterm_is_killed_with_all_below_it(tmp_path: Path) -> None:
    part = a_part(tmp_path, "trap '' TERM; sleep 600 & echo $! ; while true; do sleep 0.1; done")
    part.start()
    below = int(str(await eventually(lambda: part.log.read_text().strip(), "it has started", 10)))
    began = time.monotonic()
    await part.stop(0.3)
    assert time.monotonic() - began < 5
    assert part.pid is None
    await eventually(lambda: not runs(below), "what it started has ended", 5)


async def test_logs_are_kept_over_a_start_and_put_aside_when_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "_LOG_MAX", 20)
    for _ in range(3):
        part = a_part(tmp_path, "echo 0123456789")
        part.start()
        await eventually(lambda part=part: part.pid is None, "it has ended", 10)
    assert (tmp_path / "logs" / "thing.log").read_text() == "0123456789\n"
    assert (tmp_path / "logs" / "thing.log.1").read_text() == "0123456789\n" * 2


def test_a_lock_of_a_postgres_that_is_gone_is_cleared_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "postmaster.pid"
    # A process that has the number now, and works elsewhere.
    lock.write_text(f"{os.getpid()}\n")
    EmbeddedPostgres._clear_lock(tmp_path)
    assert not lock.exists()
    server = subprocess.Popen(["sleep", "1"], cwd=tmp_path)
    lock.write_text(f"{server.pid}\n")
    assert working_in(tmp_path) == [server.pid]
    began = time.monotonic()
    EmbeddedPostgres._clear_lock(tmp_path)
    assert time.monotonic() - began > 0.5
    assert server.wait() == 0
    assert not lock.exists()
