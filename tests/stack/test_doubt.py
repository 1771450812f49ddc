"""Calls whose outcome is unknown, on a whole stack: no input is lost, and no double batch goes unseen.

The long form: EVERYRUN_DOUBT_BATCHES=100 pytest tests/stack/test_doubt.py
"""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from everyrun.cli import job
from everyrun.cli.truth import Comparison
from everyrun.embedded.stack import Options, Stack

BATCHES = int(os.environ.get("EVERYRUN_DOUBT_BATCHES", "20"))
PER_BATCH = 5
WINDOW = 4.0

ENV = {
    "EVERYRUN_CHUNK_MAX_INPUTS": str(PER_BATCH),
    "EVERYRUN_CALL_TIMEOUT": "1",
    "EVERYRUN_DISPATCH_DEADLINE": "10",
    "EVERYRUN_DOUBT_WINDOW": str(WINDOW),
    "EVERYRUN_POLL_FIRST_AFTER": "2",
    "EVERYRUN_POLL_EVERY": "2",
    "EVERYRUN_SWEEP_IN_DOUBT_EVERY": "1",
    "EVERYRUN_REQUESTS_PER_SECOND": "50",
}


async def run(folder: Path, faults: str) -> tuple[dict, Comparison]:
    options = Options(folder, run_seconds="0:0.3", faults=f"accept_then_timeout=0.1,{faults}", seed=2, env=ENV)
    async with Stack(options) as stack:
        headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            submission = await job.hand_in(http, stack.endpoints, BATCHES * PER_BATCH)
            said, comparison = await job.agree(http, stack.endpoints, submission["submission_id"], within=120)
            truth = await job.truth(http, stack.endpoints)
    unanswered = {line["batch_id"] for line in truth}
    assert len(unanswered) >= BATCHES, "every chunk was taken"
    return said, comparison


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param("duplicate=0.1", id="webhooks come"),
        pytest.param(f"drop=1,list_lag={WINDOW / 2}", id="webhooks are lost, the list lags less than the window"),
    ],
)
async def test_nothing_is_lost_and_nothing_doubled(tmp_path: Path, faults: str) -> None:
    said, comparison = await run(tmp_path / "stack", faults)
    assert said["open"] == 0, said
    assert said["balanced"], said
    assert comparison.agrees, comparison.differences
    assert comparison.double_batches == 0
    assert said["duplicates"] == 0


async def test_a_double_batch_is_seen(tmp_path: Path) -> None:
    """The list lags for longer than the window, and no webhook comes: a batch is made twice, and the report says so."""
    said, comparison = await run(tmp_path / "stack", f"drop=1,list_lag={WINDOW * 6}")
    assert said["open"] == 0, said
    assert said["balanced"], said
    assert comparison.agrees, comparison.differences
    assert comparison.double_batches > 0, "the fault did not strike: choose another seed"
    assert said["duplicates"] == comparison.duplicates > 0
