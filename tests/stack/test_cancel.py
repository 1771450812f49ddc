"""Cancelling on a whole stack: every input ends CANCELLED or with its run's result, and the emulator agrees.

EVERYRUN_CANCEL_INPUTS sets the number of inputs of the large job; 20,000 take about ten minutes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from everyrun.embedded.state import read_status
from tests.conftest import eventually
from tests.stack.test_job import everyrun

INPUTS = int(os.environ.get("EVERYRUN_CANCEL_INPUTS", "720"))
WITHIN = 120 + INPUTS / 25
#: With one worker and slow answers, many inputs are not sent yet when the others already run.
ENV = {
    **SHORT,
    "EVERYRUN_CHUNK_MAX_INPUTS": str(max(INPUTS // 24, 1)),
    "EVERYRUN_DISPATCH_WORKERS": "1",
    "EVERYRUN_REQUESTS_PER_SECOND": "200",
}
FAULTS = "slow=0.1,submit_429=0.1,accept_then_timeout=0.1,write_429=0.05,write_5xx=0.05,duplicate=0.1"
WHY = ("--reason", "the wrong folder", "--yes")


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("cancel") / "stack"
    async with Stack(Options(folder, run_seconds="1:90", faults=FAULTS, seed=4, env=ENV)) as running:
        yield running


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        yield client


async def until(stack: Stack, http: httpx.AsyncClient, submission_id: str, **least: int) -> None:
    """Wait until the submission has at least the given number of inputs with each status."""

    async def reached() -> bool:
        url = f"{stack.endpoints['query_url']}/v1/submissions/{submission_id}/progress"
        found = (await http.get(url)).json()["by_status"]
        return all(found.get(status, 0) >= number for status, number in least.items())

    await eventually(reached, str(least), 120)


async def settle(stack: Stack, http: httpx.AsyncClient, submission_id: str) -> dict[str, int]:
    """Wait until everything is settled and the emulator agrees; return the inputs by status."""
    report, comparison = await job.wait_until_agreed(http, stack.endpoints, submission_id, within=WITHIN)
    assert comparison.agrees, comparison.differences
    assert report["open"] == 0, report
    assert report["balanced"], report["imbalances"]
    by_status: dict[str, int] = report["by_status"]
    return by_status


async def ended(stack: Stack, http: httpx.AsyncClient, submission_id: str) -> list[dict[str, Any]]:
    """Wait until the cancellations of the submission have ended; return them, newest first."""
    url = f"{stack.endpoints['submission_url']}/v1/cancellations"
    found: list[dict[str, Any]] = []

    async def all_ended() -> bool:
        nonlocal found
        listed = (await http.get(url, params={"submission_id": submission_id})).json()["cancellations"]
        found = [(await http.get(f"{url}/{one['cancellation_id']}")).json() for one in listed]
        return all(one["ended_at"] for one in found)

    await eventually(all_ended, "the cancellations end", 90)
    return found


async def rows(stack: Stack, submission_id: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(stack.endpoints["postgres_dsn"])
    try:
        return list(
            await connection.fetch(
                "select external_id, status, failure_reason, run_id from everyrun.results where submission_id = $1",
                submission_id,
            )
        )
    finally:
        await connection.close()


@pytest.mark.timeout(240 + 2 * WITHIN)
async def test_a_cancelled_job_ends_as_the_emulator_says_even_if_the_service_is_killed(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    submission_id = (await job.submit(http, stack.endpoints, INPUTS))["submission_id"]
    await until(stack, http, submission_id, PROCESSED=1)
    code, _, err = await everyrun(stack, "cancel", submission_id, *WHY)
    assert code == 0, err
    assert "not sent, and will be cancelled at once" in " ".join(err.split())
    await until(stack, http, submission_id, CANCELLED=INPUTS // 24)
    os.kill({row["part"]: row["pid"] for row in read_status(stack.data_dir)}["submission"], signal.SIGKILL)
    by_status = await settle(stack, http, submission_id)
    assert set(by_status) == {"CANCELLED", "PROCESSED"}
    found = await rows(stack, submission_id)
    assert len(found) == sum(by_status.values()) == INPUTS
    unsent = [row for row in found if row["run_id"] is None]
    assert unsent
    assert {(row["status"], row["failure_reason"]) for row in unsent} == {("CANCELLED", "CANCELLED_UNSENT")}
    (cancellation,) = await ended(stack, http, submission_id)
    assert cancellation["outcomes"]["cancelled_unsent"] == len(unsent)
    assert cancellation["outcomes"]["cancelled"] == by_status["CANCELLED"] - len(unsent)
    stats = (await http.get(f"{stack.endpoints['emulator_url']}/_emulator/stats")).json()
    assert (stats["runs"], stats["open_runs"]) == (INPUTS - len(unsent), 0)


@pytest.mark.timeout(300)
async def test_some_inputs_are_cancelled_and_the_others_are_processed(
    stack: Stack, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    count = 240
    before = (await http.get(f"{stack.endpoints['emulator_url']}/_emulator/stats")).json()["runs"]
    submission_id = (await job.submit(http, stack.endpoints, count))["submission_id"]
    ids = tmp_path / "ids.txt"
    chosen = {f"invoice-{n:06d}" for n in (*range(1, 21), *range(100, 200, 7), count)}
    ids.write_text("\n".join(sorted(chosen)))
    code, _, err = await everyrun(stack, "cancel", submission_id, "--ids", ids, *WHY)
    assert code == 0, err
    await until(stack, http, submission_id, PROCESSED=1)
    report, comparison = await job.wait_until_agreed(http, stack.endpoints, submission_id, 180, skip=before)
    assert (comparison.agrees, report["open"], report["balanced"]) == (True, 0, True), comparison.differences
    found = {row["external_id"]: row["status"] for row in await rows(stack, submission_id)}
    assert {name for name, status in found.items() if status == "CANCELLED"} <= chosen
    assert {status for name, status in found.items() if name not in chosen} == {"PROCESSED"}
    assert sum(found[name] == "CANCELLED" for name in chosen) > len(chosen) / 2


@pytest.mark.timeout(300)
async def test_the_log_makes_the_same_rows_and_tells_the_history_in_words(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    listed = (await http.get(f"{stack.endpoints['submission_url']}/v1/submissions")).json()["submissions"]
    submission_id = listed[-1]["submission_id"]
    unsent = next(row["external_id"] for row in await rows(stack, submission_id) if row["run_id"] is None)
    code, out, err = await everyrun(stack, "history", f"{submission_id}:{unsent}")
    assert code == 0, err
    text = " ".join(out.split())
    assert "was requested" in text
    assert "was cancelled before Extend accepted it" in text
    code, out, err = await everyrun(stack, "cancellations", submission_id)
    assert (code, "the wrong folder" in " ".join(out.split())) == (0, True), err
    code, out, err = await everyrun(stack, "audit")
    assert code == 0, out + err
    code, out, err = await everyrun(stack, "rebuild", "--swap")
    assert code == 0, out + err
    assert len(await rows(stack, submission_id)) == INPUTS
