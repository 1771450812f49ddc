"""An existing webhook consumer moves behind Everyrun by changing an address, on a whole stack with a lossy Extend."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from everyrun.cli import job
from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from tests.conftest import eventually, free_port
from tests.stack.up import environment

pytestmark = pytest.mark.stack

INPUTS = 50
SECRET = "wss_of_an_existing_consumer"
OF_STATUS = {"PROCESSED": "workflow_run.completed", "FAILED": "workflow_run.failed"}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    faults = "fail=0.3,drop=0.1,duplicate=0.3,reorder=0.2"
    async with Stack(Options(tmp_path / "data", run_seconds="0.1:0.5", faults=faults, seed=5, env=SHORT)) as running:
        yield running


async def everyrun(stack: Stack, *arguments: str) -> str:
    """Run a command, and return what it wrote to standard output."""
    command = [sys.executable, "-c", "from everyrun.cli.app import main; main()", *arguments]
    env = environment(EVERYRUN_DATA_DIR=str(stack.data_dir))
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_consumer_of_extends_webhooks_gets_exactly_the_run_events_of_a_job(
    stack: Stack, tmp_path: Path
) -> None:
    port, output = free_port(), tmp_path / "events"
    script = Path(__file__).with_name("webhook_consumer.py")
    with output.open("w") as lines:
        consumer = subprocess.Popen([sys.executable, str(script), str(port), SECRET], stdout=lines, text=True)
    try:
        (tmp_path / "secret").write_text(SECRET)
        url = f"http://127.0.0.1:{port}/extend-webhooks"
        options = ("--events", "workflow_run.*", "--secret-file", str(tmp_path / "secret"))
        assert (await everyrun(stack, "notify", "add", url, *options)).strip() == SECRET
        headers = {"authorization": f"Bearer {stack.endpoints['api_token']}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            submission_id = (await job.submit(http, stack.endpoints, INPUTS))["submission_id"]
            report, comparison = await job.wait_until_agreed(http, stack.endpoints, submission_id, within=120)
            assert comparison.agrees, comparison.differences
            page = await http.get(
                f"{stack.endpoints['query_url']}/v1/results", params={"submission_id": submission_id, "limit": 1000}
            )
        expected = Counter((OF_STATUS[row["status"]], row["run_id"]) for row in page.json()["results"])
        assert sum(expected.values()) == report["expected"] == INPUTS

        def got() -> Counter[tuple[str, str]]:
            rows = [line.split() for line in output.read_text().splitlines(keepends=True) if line.endswith("\n")]
            return Counter((row[1], row[2]) for row in rows)

        await eventually(lambda: set(got()) >= set(expected), "every run event arrives", 60)

        # Nothing is waiting any more, so no further event follows.
        async def nothing_waits() -> bool:
            (receiver,) = json.loads(await everyrun(stack, "notify", "list", "--json"))
            return bool(receiver["waiting"] == 0)

        await eventually(nothing_waits, "nothing waits", 60)
        connection = await asyncpg.connect(stack.endpoints["postgres_dsn"])
        try:
            decisions = "select reason from everyrun.decisions where kind = 'receiver-changed'"
            await eventually(lambda: connection.fetchval(decisions), "it is recorded who added the receiver", 60)
            assert await connection.fetchval("select count(*) from everyrun.quarantine") == 0
        finally:
            await connection.close()
        assert got() == expected
        assert "everyrun:input" not in output.read_text()
        ids = [line.split()[0] for line in output.read_text().splitlines()]
        assert len(set(ids)) == INPUTS
    finally:
        consumer.kill()
        consumer.wait()
