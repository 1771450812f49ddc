"""A whole stack with a small sending window: it is never exceeded, a pause acts at once, and everything settles.

The window and the number of inputs are in WINDOW_TEST, for example ``WINDOW_TEST=2000:20000``.
"""

from __future__ import annotations

import os
import time

import asyncpg
import httpx
import pytest

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from tests.conftest import eventually

pytestmark = pytest.mark.stack
WINDOW, INPUTS = (int(number) for number in os.environ.get("WINDOW_TEST", "100:1000").split(":"))
CHUNK = min(1000, WINDOW // 4)
WITHIN = 120 + INPUTS / 20


async def test_a_small_window_holds_and_a_pause_acts_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    env = {**SHORT, "EVERYRUN_MAX_OPEN_INPUTS": str(WINDOW)}
    options = Options(tmp_path_factory.mktemp("window"), run_seconds="0.1:0.5", plan="enterprise", seed=3, env=env)
    async with Stack(options) as stack:
        endpoints = stack.endpoints
        headers = {"authorization": f"Bearer {endpoints['api_token']}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:

            async def stats() -> dict[str, int]:
                found: dict[str, int] = (await http.get(f"{endpoints['emulator_url']}/_emulator/stats")).json()
                return found

            async def progress() -> dict[str, object]:
                url = f"{endpoints['query_url']}/v1/submissions/{submission_id}/progress"
                found: dict[str, object] = (await http.get(url)).json()
                return found

            async def act(what: str) -> bool:
                url = f"{endpoints['submission_url']}/v1/submissions/{submission_id}/{what}"
                return (await http.post(url, json={"reason": "test"})).status_code == 200

            submission_id = (await job.submit(http, endpoints, INPUTS))["submission_id"]
            waits: set[str] = set()

            async def a_third_was_sent() -> bool:
                waits.update(one["waits_for"] for one in (await progress())["waiting"])
                return (await stats())["runs"] >= INPUTS // 3

            await eventually(a_third_was_sent, "a third of the inputs was sent", WITHIN)
            assert "sending_window" in waits
            assert await act("pause")
            sent = (await stats())["runs"]

            async def nothing_is_open() -> bool:
                return (await stats())["open_runs"] == 0 and not (await progress())["by_status"].get("SENDING")

            await eventually(nothing_is_open, "what was sent has settled", WITHIN)
            # Calls that were in progress at the pause may have ended: at most one batch for each worker.
            paused_at = (await stats())["runs"]
            assert sent <= paused_at <= min(sent + 4 * CHUNK, INPUTS - CHUNK)
            connection = await asyncpg.connect(endpoints["postgres_dsn"])
            await connection.execute("drop schema everyrun cascade")
            await connection.close()
            began = time.monotonic()
            # The answer counts inputs in the dropped tables, so it is 503 until the processor has created them again.
            await eventually(lambda: act("resume"), "the submission is resumed", WITHIN)
            report, comparison = await job.wait_until_agreed(http, endpoints, submission_id, within=WITHIN)
            print(f"settled {INPUTS - paused_at} inputs in {time.monotonic() - began:.0f} s after the resume")
            assert comparison.agrees, comparison.differences
            assert (report["open"], report["balanced"]) == (0, True), report
            found = await stats()
            assert found["runs"] == INPUTS
            assert WINDOW / 2 < found["most_open_runs"] <= WINDOW
