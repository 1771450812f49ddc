"""Run the commands of docs/how-to/audit.md as they stand, one after another."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg

from everyrun.replay.archive import signing
from everyrun.replay.archive.writer import archive
from everyrun.settings import Settings
from tests.integration.services import ServiceProcess
from tests.integration.test_history import a_story, append
from tests.integration.test_rebuild import everything_applied
from tests.stack.up import environment

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "audit.md"


def blocks() -> list[str]:
    """The shell examples of the page, in order."""
    return re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


async def test_the_commands_of_the_page_work(
    settings: Settings, service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    await append(settings, a_story())
    await service("processor", EVERYRUN_DATA_DIR=tmp_path).ready()
    await everything_applied(settings)
    key = tmp_path / "key"
    signing.make_keys(key)
    archived = await archive(settings, str(tmp_path / "archive"), sign_key=signing.private_key(key))
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    row = await connection.fetchrow("select * from everyrun.results where run_id is not null order by input_id limit 1")
    moment = await connection.fetchval("select now()")
    await connection.close()
    assert row is not None
    env = environment(
        EVERYRUN_KAFKA_BOOTSTRAP=settings.kafka_bootstrap,
        EVERYRUN_TOPIC_PREFIX=settings.topic_prefix,
        EVERYRUN_POSTGRES_DSN=settings.postgres_dsn.get_secret_value(),
        EVERYRUN_DATA_DIR=str(tmp_path / "data"),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        INPUT=row["input_id"],
        BATCH=row["batch_id"],
        SUBMISSION=row["submission_id"],
        MOMENT=moment.isoformat(),
        ARCHIVE=str(tmp_path / "archive"),
        PUBLIC_KEY=str(tmp_path / "key.pub"),
        HEAD=archived.hash,
        EVIDENCE=str(tmp_path / "evidence.ndjson"),
    )
    assert len(blocks()) >= 5
    outputs = []
    for block in blocks():
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-euc", block], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "run_a" in outputs[0]
    assert "The row in the tables says the same" in outputs[0]
    evidence = [json.loads(line) for line in (tmp_path / "evidence.ndjson").read_text().splitlines()]
    assert {event["type"] for event in evidence} >= {"batch-submitted", "run-observed"}
