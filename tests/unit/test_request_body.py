"""The body of an upload is counted while it is on disk, and disappears with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from everyrun.submission.api.request_body import BodyTooLargeError, Uploads, receive
from everyrun.submission.metrics import Metrics

PART = b"x" * (1 << 20)

ENDLESS = """
import asyncio
from everyrun.submission.api.request_body import receive

async def body():
    for _ in range(3):
        yield b"x" * (1 << 20)
    print("on disk", flush=True)
    await asyncio.Event().wait()

asyncio.run(receive(body(), 1 << 30, False))
"""


def test_an_upload_in_progress_leaves_no_file_when_its_process_is_killed(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", ENDLESS], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "on disk\n"
        held = [os.readlink(fd) for fd in Path(f"/proc/{child.pid}/fd").iterdir()]
        assert any(name.startswith(str(tmp_path)) for name in held), held
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert list(tmp_path.iterdir()) == []


async def parts(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield PART


async def test_uploads_are_counted_while_they_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uploads, metrics, seen = Uploads(), Metrics(), []
    metrics.add_uploads(uploads)

    async def watched() -> AsyncIterator[bytes]:
        async for part in parts(3):
            seen.append(uploads.size)
            yield part

    with uploads.reserve() as grown, await receive(watched(), 1 << 30, False, grown):
        assert seen == [0, len(PART), 2 * len(PART)]
        assert metrics.registry.get_sample_value("everyrun_uploads") == 1
        assert metrics.registry.get_sample_value("everyrun_upload_bytes") == 3 * len(PART)
    assert (len(uploads), uploads.size) == (0, 0)
    with pytest.raises(BodyTooLargeError), uploads.reserve() as grown:
        await receive(parts(3), 2 * len(PART), False, grown)
    assert (len(uploads), uploads.size) == (0, 0)
    assert list(tmp_path.iterdir()) == []
