"""kill -9 of any one process in the middle of a job: it still ends balanced, and in agreement with the truth."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack

PARTS = ("submission", "bridge", "processor-0", "reconciler", "query", "emulator", "kafka", "postgres")
INPUTS = 1500


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    options = Options(
        tmp_path_factory.mktemp("kills"), run_seconds="0.5:4", faults="drop=0.02,duplicate=0.1", env=SHORT
    )
    async with Stack(options) as stack:
        yield stack


@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", PARTS)
async def test_a_job_survives_the_death_of(stack: Stack, part: str) -> None:
    headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        submission = await job.hand_in(http, stack.endpoints, INPUTS)
        submission_id = submission["submission_id"]
        while (await job.report(http, stack.endpoints, submission_id))["settled"] < INPUTS // 10:
            await asyncio.sleep(0.05)
        pid = stack.part(part).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        said, comparison = await job.agree(http, stack.endpoints, submission_id, within=150)
    assert stack.part(part).pid not in (None, pid)
    assert said["open"] == 0, said
    assert said["balanced"], said["imbalances"]
    assert comparison.agrees, comparison.differences
    assert comparison.double_batches == 0
