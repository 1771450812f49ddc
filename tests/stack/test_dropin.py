"""A script that was written for Extend alone runs against a whole Everyrun with two settings changed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from everyrun.cli.demo import SHORT
from everyrun.embedded.stack import Options, Stack
from tests.conftest import eventually
from tests.stack.up import environment

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(str(path) for path in (EXAMPLES / "documents").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    options = Options(tmp_path_factory.mktemp("dropin"), run_seconds="0.1:0.5", env=SHORT)
    async with Stack(options) as running:
        yield running


async def script(workflow: str, url: str, key: str) -> subprocess.CompletedProcess[str]:
    """Run the example with these two settings."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(EXAMPLES / "extend_sdk.py"), workflow, *FILES],
        capture_output=True,
        text=True,
        env=environment(EXTEND_BASE_URL=url, EXTEND_API_KEY=key),
        timeout=120,
        check=False,
    )


def results(output: str) -> list[str]:
    """Return the lines about files, without the line that names the batch."""
    return sorted(line for line in output.splitlines() if not line.startswith("batch "))


async def test_a_script_for_extend_runs_against_everyrun(stack: Stack) -> None:
    ends = stack.endpoints
    direct = await script(ends["workflow_id"], ends["extend_base_url"], ends["extend_api_key"])
    assert direct.returncode == 0, direct.stderr
    through = await script(ends["workflow_id"], ends["dropin_url"], ends["api_token"])
    assert through.returncode == 0, through.stderr
    assert results(through.stdout) == results(direct.stdout)
    assert len(results(through.stdout)) == len(FILES)
    # Everyrun has accounted for the batch: a submission, and a row for each file.
    connection = await asyncpg.connect(ends["postgres_dsn"])

    async def stored() -> bool:
        rows = await connection.fetch("select metadata, status from everyrun.results where status = 'PROCESSED'")
        return sorted(json.loads(row["metadata"])["path"] for row in rows) == FILES

    await eventually(stored, "each file has a result")
    await connection.close()
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {ends['api_token']}"}) as http:
        (known,) = (await http.get(ends["submission_url"] + "/v1/submissions")).json()["submissions"]
        report = await http.get(f"{ends['query_url']}/v1/submissions/{known['submission_id']}/report")
    assert (report.json()["expected"], report.json()["balanced"]) == (len(FILES), True)
